"""The Python client: what the command line and the demo use, and nothing they could not."""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from json import dumps
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from service.agents.schemas import AgentRead, EnrolmentCodeCreated
from service.auth.schemas import KeyCreated, KeyRead
from service.client.errors import ApiError, ApiUnreachableError, SearchTimeoutError
from service.latency_models.schemas import LatencyModelRead
from service.machines.schemas import MachineRead
from service.measurements.schemas import KitRead, MeasurementRead
from service.predictions.schemas import FilePredictionRead, PredictionList, WhatIfRead
from service.schemas import Page
from service.searches.schemas import (
    TERMINAL,
    ArchitectureRead,
    ArtifactList,
    EventList,
    EventRead,
    Feasibility,
    SearchRead,
)
from service.spaces.schemas import SpaceList, SpaceRead
from service.targets.schemas import TargetRead

Model = TypeVar("Model", bound=BaseModel)
_PATIENCE_SECONDS = 20.0
_LONG_POLL_SECONDS = 3.0
_FILE_SECONDS = 240.0  # a file is sent, and read in turn with others


class Client:
    """A session with the API; every answer is typed, every problem an `ApiError`.

    Requests are retried for some seconds while nobody answers; creations carry an
    idempotency key, so a repeated one creates nothing twice.

    Args:
        url: of the API, for example ``http://127.0.0.1:8000``.
        api_key: ``tlr_...``.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=60.0)
        self._url = url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the sockets."""
        self._http.close()

    # -- targets and measuring ---------------------------------------------------------

    def targets(self) -> list[TargetRead]:
        """Every target, newest first."""
        return list(self._pages("/v1/targets", TargetRead))

    def target(self, target_id: str) -> TargetRead:
        """One target."""
        return self._get(f"/v1/targets/{target_id}", TargetRead)

    def agents(self) -> list[AgentRead]:
        """Every agent, newest first."""
        return list(self._pages("/v1/agents", AgentRead))

    def agent(self, agent_id: str) -> AgentRead:
        """One agent."""
        return self._get(f"/v1/agents/{agent_id}", AgentRead)

    def create_enrolment_code(self, search_space: str | None = None) -> EnrolmentCodeCreated:
        """A one-time code for `tailor agent enrol`; the space is measured on what enrols."""
        body = {"search_space": search_space}
        return self._post("/v1/enrolment-codes", body, EnrolmentCodeCreated)

    def drain_agent(self, agent_id: str) -> AgentRead:
        """Let an agent finish its current task and leave."""
        return self._post(f"/v1/agents/{agent_id}/drain", None, AgentRead)

    def resume_agent(self, agent_id: str) -> AgentRead:
        """Let a drained agent have work again."""
        return self._post(f"/v1/agents/{agent_id}/resume", None, AgentRead)

    def revoke_agent(self, agent_id: str) -> None:
        """Make an agent's token worthless."""
        self._request("DELETE", f"/v1/agents/{agent_id}")

    def create_kit(
        self,
        target: str,
        search_space: str,
        *,
        again: bool = False,
        until_half_width: float | None = None,
    ) -> KitRead:
        """Have a space measured on a target.

        Args:
            again: anew what has been measured.
            until_half_width: networks first, and blocks only until predictions are known to
                within this, relative.
        """
        body = {
            "target": target,
            "search_space": search_space,
            "again": again,
            "until_half_width": until_half_width,
        }
        return self._post("/v1/kits", body, KitRead)

    def measurements(self, target: str) -> Iterator[MeasurementRead]:
        """What was measured on a target, newest first, page by page."""
        return self._pages("/v1/measurements", MeasurementRead, target=target, limit=200)

    def kit(self, kit_id: str) -> KitRead:
        """A kit and how far its measuring is."""
        return self._get(f"/v1/kits/{kit_id}", KitRead)

    def kit_manifest(
        self, search_space: str, precision: str = "float32", batch: int = 1
    ) -> dict[str, Any]:
        """The signed list of the files that a space's kit holds, word for word as it was signed."""
        asked = {"search_space": search_space, "precision": precision, "batch": batch}
        manifest: dict[str, Any] = self._request("GET", "/v1/kit-files", params=asked).json()
        return manifest

    def kit_file(self, sha256: str) -> bytes:
        """One file of a kit."""
        return self._request("GET", f"/v1/kit-files/{sha256}").content

    def latency_models(self, target: str | None = None) -> list[LatencyModelRead]:
        """Latency models, newest first."""
        parameters = {"target": target} if target else {}
        return list(self._pages("/v1/latency-models", LatencyModelRead, **parameters))

    def active_latency_model(self, target: str, search_space: str) -> LatencyModelRead | None:
        """The model that prices searches of a space on a target."""
        models = self.latency_models(target)
        return next((m for m in models if m.active and m.search_space == search_space), None)

    def latency_model(self, model_id: str) -> LatencyModelRead:
        """One latency model with its report."""
        return self._get(f"/v1/latency-models/{model_id}", LatencyModelRead)

    def activate_latency_model(self, model_id: str) -> LatencyModelRead:
        """Let a version price searches instead of the one that does; needs an admin's key."""
        return self._post(f"/v1/latency-models/{model_id}/activate", None, LatencyModelRead)

    # -- predictions -------------------------------------------------------------------

    def predict(
        self,
        target: str,
        search_space: str,
        architectures: Sequence[str],
        *,
        target_ms: float | None = None,
    ) -> PredictionList:
        """What networks of a space would take on a target, by its active latency model.

        Args:
            target_ms: say of each whether it should stay within this.
        """
        body = {
            "target": target,
            "search_space": search_space,
            "architectures": list(architectures),
            "target_ms": target_ms,
        }
        return self._post("/v1/predictions", body, PredictionList)

    def predict_with(
        self, model_id: str, architectures: Sequence[str], *, target_ms: float | None = None
    ) -> PredictionList:
        """The same by one latency model, active or not."""
        body = {"architectures": list(architectures), "target_ms": target_ms}
        return self._post(f"/v1/latency-models/{model_id}/predictions", body, PredictionList)

    def what_if(
        self, model_id: str, architecture: str, slot: int | str | None = None
    ) -> WhatIfRead:
        """What each candidate of a slot, or of every slot in turn, would change alone."""
        body = {"architecture": architecture, "slot": slot}
        return self._post(f"/v1/latency-models/{model_id}/what-if", body, WhatIfRead)

    def predict_file(self, target: str, content: bytes) -> FilePredictionRead:
        """What an ONNX file would take on a target, kernel by kernel."""
        answer = self._request(
            "POST",
            f"/v1/targets/{target}/predictions",
            content=content,
            headers={"Content-Type": "application/octet-stream"},
            timeout=_FILE_SECONDS,
        )
        return FilePredictionRead.model_validate(answer.json())

    # -- machines and spaces -----------------------------------------------------------

    def machines(self) -> list[MachineRead]:
        """The machines that have run workers, newest first."""
        return list(self._pages("/v1/machines", MachineRead))

    def search_spaces(self) -> list[SpaceRead]:
        """Every search space."""
        return self._get("/v1/search-spaces", SpaceList).items

    # -- searches ----------------------------------------------------------------------

    def preflight(self, **spec: Any) -> Feasibility:
        """Which budgets can be met and at what effort; see `SearchCreate` for the fields."""
        response = self._request("POST", "/v1/searches", json=spec, params={"dry_run": True})
        return Feasibility.model_validate(response.json())

    def create_search(self, *, idempotency_key: str | None = None, **spec: Any) -> SearchRead:
        """Queue a search; see `SearchCreate` for the fields of `spec`."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        response = self._request("POST", "/v1/searches", json=spec, headers=headers)
        return SearchRead.model_validate(response.json())

    def searches(self, status: str | None = None) -> Iterator[SearchRead]:
        """Searches, newest first, page by page."""
        parameters = {"status": status} if status else {}
        return self._pages("/v1/searches", SearchRead, **parameters)

    def search(self, search_id: str) -> SearchRead:
        """One search."""
        return self._get(f"/v1/searches/{search_id}", SearchRead)

    def cancel_search(self, search_id: str) -> SearchRead:
        """Stop a search."""
        return self._post(f"/v1/searches/{search_id}/cancel", None, SearchRead)

    def events(
        self, search_id: str, *, after: int = 0, on_quiet: Callable[[], None] | None = None
    ) -> Iterator[EventRead]:
        """Events as they happen, until the search has ended.

        Args:
            after: number of the last event seen.
            on_quiet: called every few seconds without news.
        """
        while True:
            found = self.new_events(search_id, after, _LONG_POLL_SECONDS)
            yield from found
            if found:
                after = found[-1].number
                continue
            if self.search(search_id).status in TERMINAL:
                return
            if on_quiet is not None:
                on_quiet()

    def new_events(self, search_id: str, after: int, wait_seconds: float) -> list[EventRead]:
        """Events after a number; waits for some unless the search has ended."""
        parameters = {"after": after, "wait": wait_seconds}
        return self._get(f"/v1/searches/{search_id}/events", EventList, **parameters).items

    def wait(self, search_id: str, timeout_seconds: float) -> SearchRead:
        """The search once it has ended.

        Raises:
            SearchTimeoutError: it had not by then; it goes on all the same.
        """
        deadline = time.monotonic() + timeout_seconds
        while (search := self.search(search_id)).status not in TERMINAL:
            left = deadline - time.monotonic()
            if left <= 0:
                raise SearchTimeoutError(f"search {search_id} is still {search.status}")
            self.new_events(search_id, after=2**31 - 1, wait_seconds=min(left, 2.0))
        return search

    def architecture(self, search_id: str) -> ArchitectureRead:
        """The network a search found."""
        return self._get(f"/v1/searches/{search_id}/architecture", ArchitectureRead)

    def artifacts(self, search_id: str) -> ArtifactList:
        """The files of a search."""
        return self._get(f"/v1/searches/{search_id}/artifacts", ArtifactList)

    def download(self, search_id: str, name: str) -> bytes:
        """The content of one file of a search."""
        return self._request("GET", f"/v1/searches/{search_id}/artifacts/{name}").content

    # -- keys --------------------------------------------------------------------------

    def create_key(self, name: str, scope: str) -> KeyCreated:
        """A new API key with its secret."""
        return self._post("/v1/keys", {"name": name, "scope": scope}, KeyCreated)

    def keys(self) -> list[KeyRead]:
        """Every API key, without secrets."""
        return list(self._pages("/v1/keys", KeyRead))

    def revoke_key(self, key_id: str) -> None:
        """Make an API key worthless."""
        self._request("DELETE", f"/v1/keys/{key_id}")

    # -- plumbing ----------------------------------------------------------------------

    def _get(self, path: str, model: type[Model], **parameters: Any) -> Model:
        return model.model_validate(self._request("GET", path, params=parameters).json())

    def _post(self, path: str, body: dict[str, Any] | None, model: type[Model]) -> Model:
        return model.model_validate(self._request("POST", path, json=body).json())

    def _pages(self, path: str, model: type[Model], **parameters: Any) -> Iterator[Model]:
        cursor: str | None = None
        while True:
            asked = {**parameters, **({"cursor": cursor} if cursor else {})}
            page = self._get(path, Page[model], **asked)  # type: ignore[valid-type]
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def _request(
        self, method: str, path: str, *, json: dict[str, Any] | None = None, **arguments: Any
    ) -> httpx.Response:
        if json is not None:
            # httpx refuses NaN; the API answers it with the name of the field
            headers = {"Content-Type": "application/json", **arguments.pop("headers", {})}
            arguments |= {"content": dumps(json), "headers": headers}
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(httpx.ConnectError),
                stop=stop_after_delay(_PATIENCE_SECONDS),
                wait=wait_random_exponential(0.1, 2.0),
                reraise=True,
            ):
                with attempt:
                    response = self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise ApiUnreachableError(
                f"no answer from {self._url}: {error}; is `tailor api` running there?"
            ) from error
        if response.is_error:
            try:
                problem = response.json()
            except ValueError:
                problem = {"detail": response.text[:500]}
            raise ApiError(response.status_code, problem)
        return response
