"""The client for programs that await: the same calls as the one that blocks."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service.client.async_client import AsyncClient
from service.client.client import Client
from service.client.errors import (
    ApiError,
    ApiUnreachableError,
    SearchCancelledError,
    SearchTimeoutError,
)


@pytest.fixture
def run(api):
    """Runs an async function with a client."""

    def runner(use: Callable[[AsyncClient], Awaitable[Any]]) -> Any:
        async def session() -> Any:
            async with AsyncClient(api.url, api.admin_key) as client:
                return await use(client)

        return asyncio.run(session())

    return runner


def spec(measured, **changes: object) -> dict:
    return {"target": measured.target_id, "latency_budget_ms": 0.03, **changes}


def calls_of(client: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(method)
        for name, method in inspect.getmembers(client, inspect.isfunction)
        if not name.startswith("_") and name not in ("close", "perform")
    }


def test_both_clients_have_the_same_calls_with_the_same_documentation():
    blocking, awaited = calls_of(Client), calls_of(AsyncClient)
    assert blocking == awaited
    assert len(blocking) > 60
    assert list(blocking["wait"].parameters) == ["self", "search_id", "timeout_seconds", "check"]
    for name in blocking:
        assert getattr(Client, name).__doc__ == getattr(AsyncClient, name).__doc__ is not None


def test_searches_are_made_listed_and_cancelled(run, api, measured):
    async def use(client: AsyncClient):
        made = [await client.create_search(**spec(measured, seed=seed)) for seed in range(2)]
        listed = [search.id async for search in client.searches("queued", oldest_first=True)]
        both = await asyncio.gather(*(client.cancel_search(search.id) for search in made))
        return [search.id for search in made], listed, [search.status for search in both]

    made, listed, statuses = run(use)
    assert listed[-2:] == made
    assert statuses == ["cancelled"] * 2


def test_events_are_streamed_until_the_search_has_ended(run, measured):
    async def use(client: AsyncClient):
        search = await client.create_search(**spec(measured))

        async def cancel() -> None:
            await client.cancel_search(search.id)

        cancelling = asyncio.create_task(cancel())
        told = [event async for event in client.stream(search.id)]
        await cancelling
        return told

    events = run(use)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert events[-1].data["status"] == "cancelled"


def test_a_stream_that_is_left_early_is_closed(run, measured):
    async def use(client: AsyncClient):
        search = await client.create_search(**spec(measured))
        followed = client.stream(search.id)
        first = await anext(followed)
        await followed.aclose()
        return first

    assert run(use).data == {"status": "queued"}


def test_an_awaited_search_that_ended_otherwise_is_an_error(run, measured):
    async def use(client: AsyncClient):
        search = await client.create_search(**spec(measured))
        with pytest.raises(SearchTimeoutError):
            await client.wait(search.id, 0.0)
        waiting = asyncio.create_task(client.wait(search.id, 60.0, check=True))
        await client.cancel_search(search.id)
        with pytest.raises(SearchCancelledError) as raised:
            await waiting
        return raised.value.search

    assert run(use).status == "cancelled"


def test_a_problem_is_an_error(run):
    async def use(client: AsyncClient):
        with pytest.raises(ApiError) as raised:
            await client.search("srch_nobody")
        return raised.value

    assert run(use).code == "not_found"


def test_a_file_is_sent_piece_by_piece(run, api, files, tmp_path):
    path = tmp_path / "made up.npz"
    path.write_bytes(files.npz())
    sent = []
    made = run(lambda client: client.upload_dataset(path, on_progress=sent.append))
    assert (made.name, made.status) == ("made-up", "checking")
    assert sent[-1] == path.stat().st_size


def test_a_silent_address_is_unreachable(monkeypatch):
    monkeypatch.setattr("service.client.retrying.PATIENCE_SECONDS", 0.2)

    async def use() -> None:
        async with AsyncClient("http://127.0.0.1:9", None) as client:
            await client.targets()

    with pytest.raises(ApiUnreachableError, match="tailor api"):
        asyncio.run(use())
