"""What an agent says to the API: enrol, lease, download, upload."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from predictor.agent.journal import JournalEntry
from predictor.measurements import Effort, TargetProfile


@dataclass(frozen=True)
class Identity:
    """What an agent must remember to be itself after a restart.

    Attributes:
        token: the bearer token, scoped to `target_id`; shown once by the API.
        profile_digest, threads: what it enrolled as; when the host changes, it is another
            target and must enrol again.
    """

    api_url: str
    agent_id: str
    target_id: str
    token: str
    profile_digest: str
    threads: int

    def save(self, path: Path) -> None:
        """Write to `path`, readable by its owner alone."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file)

    @classmethod
    def load(cls, path: Path) -> "Identity":
        """The identity saved at `path`."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class LeasedTask:
    """One model file to measure, ours until the lease ends.

    Attributes:
        fence: number of this lease; a result carrying an older one is refused.
        model_sha256, anchor_sha256: hashes the downloads must have.
    """

    id: str
    subject: str
    effort: Effort
    fence: int
    model_sha256: str
    anchor_sha256: str


class ServerRefusedError(Exception):
    """The API answered with an error that trying again will not mend."""


def _passing(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.is_server_error or error.response.status_code == 429
    return isinstance(error, httpx.TransportError)


class Connection:
    """An HTTP session with the API that outlasts restarts and short network cuts.

    Args:
        patience_seconds: how long a request is retried before it raises.
    """

    def __init__(self, api_url: str, token: str | None, patience_seconds: float = 10.0) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=api_url, headers=headers, timeout=60.0)
        self._patience_seconds = patience_seconds

    def close(self) -> None:
        """Release the sockets."""
        self._http.close()

    def enrol(self, code: str, name: str, profile: TargetProfile, version: str) -> Identity:
        """Redeem a one-time enrolment code.

        Raises:
            ServerRefusedError: the code is unknown, used or expired.
        """
        body = {"code": code, "name": name, "profile": asdict(profile), "agent_version": version}
        answer = self._request("POST", "/v1/agents", json=body).json()
        return Identity(
            str(self._http.base_url).rstrip("/"),
            answer["id"],
            answer["target_id"],
            answer["token"],
            profile.digest,
            profile.threads,
        )

    def lease(self, limit: int, wait_seconds: float) -> list[LeasedTask]:
        """Up to `limit` tasks, waiting for the first one up to `wait_seconds`."""
        body = {"limit": limit, "wait_seconds": wait_seconds}
        answer = self._request("POST", "/v1/measurement-tasks/lease", json=body).json()
        return [LeasedTask(**task) for task in answer["items"]]

    def download(self, sha256: str) -> bytes:
        """The model file of that hash.

        Raises:
            ServerRefusedError: the file does not have the hash it was announced with.
        """
        content = self._request("GET", f"/v1/models/{sha256}").content
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ServerRefusedError(f"model {sha256[:12]} arrived with another hash; not run")
        return content

    def upload(self, entry: JournalEntry) -> dict[str, Any]:
        """Upload a batch; the same `batch_id` twice is stored once.

        Returns:
            The report: per item ``accepted`` or the reason it was not.
        """
        body = {"batch_id": entry.batch_id, "items": entry.items}
        report: dict[str, Any] = self._request("POST", "/v1/measurements", json=body).json()
        return report

    def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        for attempt in Retrying(
            retry=retry_if_exception(_passing),
            stop=stop_after_delay(self._patience_seconds),
            wait=wait_random_exponential(0.2, 10.0),
            reraise=True,
        ):
            with attempt:
                response = self._http.request(method, path, **arguments)
                if (
                    response.is_client_error
                    and response.status_code != httpx.codes.TOO_MANY_REQUESTS
                ):
                    raise ServerRefusedError(_reason(response))
                response.raise_for_status()
                return response
        raise AssertionError("unreachable: Retrying returns or raises")


def _reason(response: httpx.Response) -> str:
    try:
        problem = response.json()
        return f"{response.status_code} {problem['title']}: {problem['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.reason_phrase}"
