"""What an agent says to the API: enrol, lease, download, upload."""

import gzip
import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from predictor.agent import signing
from predictor.agent.journal import JournalEntry
from predictor.agent.runtimes.base import RuntimeSpec
from predictor.errors import NotAuthenticError
from predictor.measurements import Effort, TargetProfile


@dataclass(frozen=True)
class Identity:
    """What an agent must remember to be itself after a restart.

    Attributes:
        token: the bearer token, scoped to the targets; shown once by the API.
        signing_key: what the API signs tasks with; learnt at enrolment, base64.
        runtimes: how each target is measured, by target id.
        digests: of the profile each target was enrolled with; when the host changes, it is
            another target and must enrol again.
    """

    api_url: str
    agent_id: str
    token: str
    signing_key: str
    runtimes: dict[str, RuntimeSpec]
    digests: dict[str, str]

    def save(self, path: Path) -> None:
        """Write to `path`, readable by its owner alone, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Identity":
        """The identity saved at `path`."""
        document = json.loads(path.read_text(encoding="utf-8"))
        runtimes = {t: RuntimeSpec(**spec) for t, spec in document.pop("runtimes").items()}
        return cls(runtimes=runtimes, **document)


@dataclass(frozen=True)
class LeasedTask:
    """One model file to measure, ours until the lease ends.

    Attributes:
        fence: number of this lease; a result carrying an older one is refused.
        model_sha256, anchor_sha256: hashes the downloads must have.
        signature: the API's, over what `predictor.agent.signing.task_message` says.
    """

    id: str
    target_id: str
    subject: str
    effort: Effort
    fence: int
    model_sha256: str
    anchor_sha256: str
    signature: str


@dataclass(frozen=True)
class Lease:
    """What the API gave: tasks, and whether it wants this agent to leave."""

    tasks: list[LeasedTask]
    draining: bool


_BYTES = "application/octet-stream"


class ServerRefusedError(Exception):
    """The API answered with an error that trying again will not mend."""


def _passing(error: BaseException) -> bool:
    return isinstance(error, httpx.HTTPStatusError | httpx.TransportError | httpx.DecodingError)


class Connection:
    """An HTTP session with the API that outlasts restarts and short network cuts.

    Args:
        signing_key: the API's, as the identity keeps it.
        models: folder where downloaded files are kept for the next time; None keeps none.
        patience_seconds: how long a request is retried before it raises.
    """

    def __init__(
        self,
        api_url: str,
        token: str | None,
        *,
        signing_key: str = "",
        models: Path | None = None,
        patience_seconds: float = 10.0,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=api_url, headers=headers, timeout=60.0)
        self._signing_key = signing_key
        self._models = models
        self._patience_seconds = patience_seconds

    def close(self) -> None:
        """Release the sockets."""
        self._http.close()

    def enrol(
        self,
        code: str,
        name: str,
        targets: list[tuple[RuntimeSpec, TargetProfile]],
        version: str,
    ) -> Identity:
        """Redeem a one-time enrolment code for these targets.

        Raises:
            ServerRefusedError: the code is unknown, used or expired, or this agent too old.
        """
        body = {
            "code": code,
            "name": name,
            "profiles": [asdict(profile) for _, profile in targets],
            "agent_version": version,
        }
        answer = self._request("POST", "/v1/agents", json=body).json()
        by_target = dict(zip(answer["target_ids"], targets, strict=True))
        return Identity(
            str(self._http.base_url).rstrip("/"),
            answer["id"],
            answer["token"],
            answer["signing_key"],
            runtimes={target: spec for target, (spec, _) in by_target.items()},
            digests={target: profile.digest for target, (_, profile) in by_target.items()},
        )

    def heartbeat(
        self,
        version: str,
        activity: str,
        journal_batches: int,
        profiles: dict[str, TargetProfile],
        holds: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Tell the API that this agent lives; the leases of the tasks in `holds` are extended.

        Returns:
            ``draining``, ``stale`` (targets whose latency models no longer hold, with the
            reason) and ``heartbeat_seconds``.
        """
        body = {
            "agent_version": version,
            "activity": activity,
            "journal_batches": journal_batches,
            "profiles": {target: asdict(profile) for target, profile in profiles.items()},
            "holds": list(holds),
        }
        answer: dict[str, Any] = self._request(
            "POST", "/v1/agents/self/heartbeat", json=body
        ).json()
        return answer

    def itself(self) -> dict[str, Any]:
        """What the API knows of this agent: its targets, their kits and latency models."""
        answer: dict[str, Any] = self._request("GET", "/v1/agents/self").json()
        return answer

    def lease(self, limit: int, wait_seconds: float) -> Lease:
        """Up to `limit` tasks, waiting for the first one up to `wait_seconds`."""
        body = {"limit": limit, "wait_seconds": wait_seconds}
        answer = self._request("POST", "/v1/measurement-tasks/lease", json=body).json()
        return Lease([LeasedTask(**task) for task in answer["items"]], answer["draining"])

    def check_signature(self, task: LeasedTask) -> None:
        """Check that the API, and nobody between, named the files of `task`.

        Raises:
            NotAuthenticError: it did not.
        """
        message = signing.task_message(
            task.target_id, task.subject, task.model_sha256, task.anchor_sha256
        )
        signing.check_signature(message, task.signature, self._signing_key)

    def download(self, sha256: str) -> bytes:
        """The model file of that hash, from disk if it was here before.

        Raises:
            NotAuthenticError: the file does not have the hash it was announced with.
        """
        kept = self._models / sha256 if self._models else None
        if kept is not None and kept.exists():
            content = kept.read_bytes()
            if hashlib.sha256(content).hexdigest() == sha256:
                return content
        content = self._request("GET", f"/v1/models/{sha256}", answer=_BYTES).content
        if hashlib.sha256(content).hexdigest() != sha256:
            raise NotAuthenticError(f"model {sha256[:12]} arrived with another hash; not run")
        if kept is not None:
            with suppress(OSError):  # a full disk costs a download, no more
                kept.parent.mkdir(parents=True, exist_ok=True)
                partial = kept.with_suffix(".partial")
                partial.write_bytes(content)
                partial.replace(kept)
        return content

    def upload(self, entry: JournalEntry) -> dict[str, Any]:
        """Upload a batch, compressed; the same `batch_id` twice is stored once.

        Returns:
            The report: per item ``accepted`` or the reason it was not.
        """
        body = json.dumps({"batch_id": entry.batch_id, "items": entry.items}).encode()
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        report: dict[str, Any] = self._request(
            "POST", "/v1/measurements", content=gzip.compress(body, 6, mtime=0), headers=headers
        ).json()
        return report

    def _request(
        self, method: str, path: str, *, answer: str = "application/json", **arguments: Any
    ) -> httpx.Response:
        for attempt in Retrying(
            retry=retry_if_exception(_passing),
            stop=stop_after_delay(self._patience_seconds),
            wait=wait_random_exponential(0.2, 10.0),
            reraise=True,
        ):
            with attempt:
                response = self._http.request(method, path, **arguments)
                told = response.headers.get("Content-Type", "")
                if (
                    response.is_client_error
                    and response.status_code != httpx.codes.TOO_MANY_REQUESTS
                    and told.startswith("application/problem+json")
                ):
                    raise ServerRefusedError(_reason(response))
                response.raise_for_status()
                if not told.startswith(answer):  # a gateway's log-in page, say
                    raise httpx.DecodingError(f"something else than the API answered: {told}")
                return response
        raise AssertionError("unreachable: Retrying returns or raises")


def _reason(response: httpx.Response) -> str:
    try:
        problem = response.json()
        return f"{response.status_code} {problem['title']}: {problem['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.reason_phrase}"
