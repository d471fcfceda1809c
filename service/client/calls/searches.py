"""Calls about searches; see `service.client.asking`."""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from service.client.asking import Ask, Item, Items, Listen, Pause, Steps, get, given, pages, post
from service.client.errors import (
    ApiError,
    SearchCancelledError,
    SearchEndedError,
    SearchFailedError,
    SearchInfeasibleError,
    SearchTimeoutError,
)
from service.searches.event_schemas import MetricsRead
from service.searches.schemas import (
    TERMINAL,
    ArchitectureRead,
    ArtifactList,
    BulkResult,
    Comparison,
    EventList,
    EventRead,
    Feasibility,
    Front,
    Lineage,
    SearchRead,
)

_POLL_SECONDS = 3.0
_LONG_POLL_SECONDS = 25.0
_FRUITLESS_STREAMS = 4
_PATCHES = 10
_UNCHANGED, _CHANGED_MEANWHILE, _TOO_MANY, _SERVER_AT_FAULT = 304, 412, 429, 500
_ENDINGS: dict[str, type[SearchEndedError]] = {
    "infeasible": SearchInfeasibleError,
    "failed": SearchFailedError,
    "cancelled": SearchCancelledError,
}


def preflight(**spec: Any) -> Steps[Feasibility]:
    """Which budgets can be met and at what effort; see `SearchCreate` for the fields."""
    answer = yield Ask("POST", "/v1/searches", json=spec, params={"dry_run": True})
    return Feasibility.model_validate(answer.json())


def create_search(*, idempotency_key: str | None = None, **spec: Any) -> Steps[SearchRead]:
    """Queue a search; see `SearchCreate` for the fields of `spec`."""
    return (yield from _made("/v1/searches", spec, idempotency_key))


def searches(
    status: str | None = None,
    *,
    kind: str | None = None,
    target: str | None = None,
    tags: Mapping[str, str] | None = None,
    owner: str | None = None,
    parent: str | None = None,
    archived: bool | None = None,
    oldest_first: bool = False,
) -> Items[SearchRead]:
    """Searches, newest first, page by page.

    Args:
        tags: all of which they have.
        owner: an account; operators see every one, others their own.
        parent: the search they were made from.
        archived: only these, or none of them.
    """
    yield from pages(
        "/v1/searches",
        SearchRead,
        status=status,
        kind=kind,
        target=target,
        tag=[f"{name}:{value}" for name, value in (tags or {}).items()] or None,
        owner=owner,
        parent=parent,
        archived=archived,
        order="created_at" if oldest_first else None,
    )


def search(search_id: str) -> Steps[SearchRead]:
    """One search."""
    return (yield from get(f"/v1/searches/{search_id}", SearchRead))


# -- actions ---------------------------------------------------------------------------


def cancel_search(search_id: str) -> Steps[SearchRead]:
    """Stop a search for good."""
    return (yield from post(f"/v1/searches/{search_id}/cancel", None, SearchRead))


def pause_search(search_id: str) -> Steps[SearchRead]:
    """Keep what was reached and give the worker back."""
    return (yield from post(f"/v1/searches/{search_id}/pause", None, SearchRead))


def resume_search(search_id: str) -> Steps[SearchRead]:
    """Queue a paused search again; it goes on from its last checkpoint."""
    return (yield from post(f"/v1/searches/{search_id}/resume", None, SearchRead))


def update_search(
    search_id: str,
    *,
    tags: Mapping[str, str] | None = None,
    priority: int | None = None,
    archived: bool | None = None,
) -> Steps[SearchRead]:
    """Change what is given and leave the rest; `tags` replace those there were."""
    changes = given({"tags": tags, "priority": priority, "archived": archived})
    return (yield from _changed(search_id, lambda _: changes))


def tag_search(search_id: str, tags: Mapping[str, str | None]) -> Steps[SearchRead]:
    """Add tags, or remove those that are given as None; the others stay."""
    return (yield from _changed(search_id, lambda now: {"tags": given({**now.tags, **tags})}))


def bulk(
    action: str, search_ids: Sequence[str], *, tags: Mapping[str, str] | None = None
) -> Steps[BulkResult]:
    """One action on many searches, each done or refused by itself; see `BulkAction`."""
    body = {"action": action, "ids": list(search_ids), "tags": dict(tags or {})}
    return (yield from post("/v1/searches/bulk", body, BulkResult))


# -- others from one -------------------------------------------------------------------


def clone_search(
    search_id: str, *, idempotency_key: str | None = None, **changes: Any
) -> Steps[SearchRead]:
    """Queue the same search once more with some fields changed; see `SearchClone`."""
    return (yield from _made(f"/v1/searches/{search_id}/clone", changes, idempotency_key))


def extend_search(
    search_id: str,
    *,
    epochs: int | None = None,
    limits: Mapping[str, float | None] | None = None,
    idempotency_key: str | None = None,
) -> Steps[SearchRead]:
    """Go on with a search that has ended: so many more epochs, or with other limits."""
    body = given({"epochs": epochs, "limits": limits})
    return (yield from _made(f"/v1/searches/{search_id}/extend", body, idempotency_key))


def derive(
    search_id: str,
    *,
    budgets_ms: Sequence[float] = (),
    points: int | None = None,
    target: str | None = None,
    train_epochs: int = 0,
    idempotency_key: str | None = None,
) -> Steps[SearchRead]:
    """Networks at other budgets from the supernet of a search that has ended.

    Args:
        points: so many budgets, spread over what the target can do, instead of `budgets_ms`.
        train_epochs: of training each on; 0 takes the supernet's weights.
    """
    body = {
        "budgets_ms": list(budgets_ms),
        "points": points,
        "target": target,
        "train_epochs": train_epochs,
    }
    return (yield from _made(f"/v1/searches/{search_id}/derive", body, idempotency_key))


def reproduce_search(search_id: str, *, idempotency_key: str | None = None) -> Steps[SearchRead]:
    """Run a search once more and compare; its result says whether it came out the same."""
    return (yield from _made(f"/v1/searches/{search_id}/reproduce", None, idempotency_key))


# -- what comes of them ----------------------------------------------------------------


def wait(search_id: str, timeout_seconds: float, *, check: bool = False) -> Steps[SearchRead]:
    """The search once it has ended.

    Args:
        check: let an end other than success be an error.

    Raises:
        SearchTimeoutError: it had not ended by then; it goes on all the same.
        SearchInfeasibleError, SearchFailedError, SearchCancelledError: how it ended, with
            `check`.
    """
    deadline = time.monotonic() + timeout_seconds
    found: SearchRead | None = None
    headers: dict[str, str] = {}
    while found is None or found.status not in TERMINAL:
        left_seconds = deadline - time.monotonic()
        if found is not None and left_seconds <= 0.0:
            raise SearchTimeoutError(f"search {search_id} is still {found.status}")
        asked = {"wait": min(max(left_seconds, 0.0), _LONG_POLL_SECONDS)}
        answer = yield Ask("GET", f"/v1/searches/{search_id}", params=asked, headers=headers)
        if answer.status_code != _UNCHANGED:
            found = SearchRead.model_validate(answer.json())
            headers = {"If-None-Match": answer.headers["ETag"]}
    if check and found.status in _ENDINGS:
        raise _ENDINGS[found.status](found)
    return found


def new_events(search_id: str, after: int, wait_seconds: float) -> Steps[list[EventRead]]:
    """Events after a number; waits for some unless the search has ended."""
    asked = {"after": after, "wait": wait_seconds}
    return (yield from get(f"/v1/searches/{search_id}/events", EventList, **asked)).items


def past_events(search_id: str, after: int = 0) -> Items[EventRead]:
    """What has happened so far."""
    while found := (yield from new_events(search_id, after, 0.0)):
        yield from map(Item, found)
        after = found[-1].number


def events(
    search_id: str, *, after: int = 0, on_quiet: Callable[[], None] | None = None
) -> Items[EventRead]:
    """Events as they happen, until the search has ended.

    Args:
        after: number of the last event seen.
        on_quiet: called every few seconds without news.
    """
    while True:
        found = yield from new_events(search_id, after, _POLL_SECONDS)
        yield from map(Item, found)
        if found:
            after = found[-1].number
            continue
        if (yield from search(search_id)).status in TERMINAL:
            return
        if on_quiet is not None:
            on_quiet()


def stream(search_id: str, *, after: int = 0) -> Items[EventRead]:
    """The same over one connection, which is made anew where it broke off.

    Where nothing can be streamed, as behind some proxies, the events are polled.
    """
    fruitless = 0
    while fruitless < _FRUITLESS_STREAMS:
        try:
            while told := (yield Listen(f"/v1/searches/{search_id}/events/stream", after)):
                fruitless = 0
                if told.event == "end":
                    return
                if told.data:
                    event = EventRead.model_validate_json(told.data)
                    yield Item(event)
                    after = event.number
        except ApiError as error:
            if error.status != _TOO_MANY and error.status < _SERVER_AT_FAULT:
                raise
            fruitless += 1
        except httpx.TransportError:
            fruitless += 1
        yield Pause(0.1 * 2**fruitless)
    yield from events(search_id, after=after)


def metrics(search_id: str, names: Sequence[str] = (), max_points: int = 500) -> Steps[MetricsRead]:
    """The metrics of a search as curves of at most so many points; every one if none is named.

    Each point shown was reported; of each part of a longer curve the first, last, smallest
    and largest are.
    """
    asked = {"max_points": max_points, "names": ",".join(names) or None}
    return (yield from get(f"/v1/searches/{search_id}/metrics", MetricsRead, **asked))


def architecture(search_id: str) -> Steps[ArchitectureRead]:
    """The network a search found."""
    return (yield from get(f"/v1/searches/{search_id}/architecture", ArchitectureRead))


def artifacts(search_id: str) -> Steps[ArtifactList]:
    """The files of a search."""
    return (yield from get(f"/v1/searches/{search_id}/artifacts", ArtifactList))


def download(search_id: str, name: str) -> Steps[bytes]:
    """The content of one file of a search."""
    answer = yield Ask("GET", f"/v1/searches/{search_id}/artifacts/{name}")
    content: bytes = answer.content
    return content


def front(search_id: str) -> Steps[Front]:
    """Accuracy against latency of every network of a search and of what was derived from it."""
    return (yield from get(f"/v1/searches/{search_id}/front", Front))


def lineage(search_id: str) -> Steps[Lineage]:
    """What a search comes from: searches, latency models, measurements, agents, devices."""
    return (yield from get(f"/v1/searches/{search_id}/lineage", Lineage))


def compare(search_ids: Sequence[str]) -> Steps[Comparison]:
    """Two to six searches side by side, and what their specs do not share."""
    return (yield from get("/v1/searches/compare", Comparison, ids=list(search_ids)))


def _made(path: str, body: Mapping[str, Any] | None, key: str | None) -> Steps[SearchRead]:
    """A new search; under a key, so that a repeated request makes no second one."""
    headers = {"Idempotency-Key": key or uuid.uuid4().hex}
    answer = yield Ask("POST", path, json=body, headers=headers)
    return SearchRead.model_validate(answer.json())


def _changed(
    search_id: str, change: Callable[[SearchRead], Mapping[str, Any]]
) -> Steps[SearchRead]:
    """The search with `change` of it as it is now; read anew when somebody was faster."""
    path = f"/v1/searches/{search_id}"
    for attempt in range(1, _PATCHES + 1):
        now = yield Ask("GET", path)
        body = change(SearchRead.model_validate(now.json()))
        try:
            answer = yield Ask("PATCH", path, json=body, headers={"If-Match": now.headers["ETag"]})
        except ApiError as error:
            if error.status != _CHANGED_MEANWHILE or attempt == _PATCHES:
                raise
        else:
            return SearchRead.model_validate(answer.json())
    raise AssertionError("the last attempt returns or raises")
