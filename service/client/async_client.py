"""The Python client for programs that await: the calls of `Client`, over `httpx.AsyncClient`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx
from httpx_sse import ServerSentEvent, aconnect_sse
from tenacity import AsyncRetrying

from service.client.asking import (
    Ask,
    Course,
    Item,
    Items,
    Listen,
    Pause,
    Steps,
    arguments,
    checked,
    like,
)
from service.client.calls import datasets as datasets_calls
from service.client.calls import keys as keys_calls
from service.client.calls import measuring as measuring_calls
from service.client.calls import predictions as predictions_calls
from service.client.calls import searches as searches_calls
from service.client.calls import webhooks as webhooks_calls
from service.client.calls import workers as workers_calls
from service.client.client import SILENCE_SECONDS, TIMEOUT_SECONDS
from service.client.errors import ApiUnreachableError, TailorClientError
from service.client.files import FileBody
from service.client.retrying import rules

P = ParamSpec("P")
T = TypeVar("T")


def later(call: Callable[P, Steps[T]]) -> "Callable[Concatenate[AsyncClient, P], Awaitable[T]]":
    """The method of a client that does this call when it is awaited."""

    async def method(client: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        course = Course(call(*args, **kwargs))
        async for _ in client.perform(course):
            raise TypeError(f"{call.__name__} gives several things: use `each_later`")
        return course.result  # type: ignore[return-value]

    return like(method, call)


def each_later(
    call: Callable[P, Items[T]],
) -> "Callable[Concatenate[AsyncClient, P], AsyncIterator[T]]":
    """The method of a client that does this call as far as its items are taken."""

    async def method(
        client: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncIterator[T]:
        async for item in client.perform(Course(call(*args, **kwargs))):
            yield item

    return like(method, call)


class AsyncClient:
    """As `Client`; its methods are awaited, and its lists gone through with ``async for``.

    Args:
        url: of the API, for example ``http://127.0.0.1:8000``.
        api_key: ``tlr_...``.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_SECONDS)
        self._retrying = AsyncRetrying(**rules())
        self._url = url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Release the sockets."""
        await self._http.aclose()

    # -- targets and measuring ---------------------------------------------------------

    targets = later(measuring_calls.targets)
    target = later(measuring_calls.target)
    agents = later(measuring_calls.agents)
    agent = later(measuring_calls.agent)
    create_enrolment_code = later(measuring_calls.create_enrolment_code)
    drain_agent = later(measuring_calls.drain_agent)
    resume_agent = later(measuring_calls.resume_agent)
    revoke_agent = later(measuring_calls.revoke_agent)
    create_kit = later(measuring_calls.create_kit)
    measurements = each_later(measuring_calls.measurements)
    kit = later(measuring_calls.kit)
    kit_manifest = later(measuring_calls.kit_manifest)
    kit_file = later(measuring_calls.kit_file)
    latency_models = later(measuring_calls.latency_models)
    active_latency_model = later(measuring_calls.active_latency_model)
    latency_model = later(measuring_calls.latency_model)
    activate_latency_model = later(measuring_calls.activate_latency_model)

    # -- predictions -------------------------------------------------------------------

    predict = later(predictions_calls.predict)
    predict_with = later(predictions_calls.predict_with)
    what_if = later(predictions_calls.what_if)
    predict_file = later(predictions_calls.predict_file)

    # -- machines, workers and spaces --------------------------------------------------

    machines = later(workers_calls.machines)
    workers = later(workers_calls.workers)
    worker = later(workers_calls.worker)
    drain_worker = later(workers_calls.drain_worker)
    search_spaces = later(workers_calls.search_spaces)

    # -- data sets ---------------------------------------------------------------------

    datasets = later(datasets_calls.datasets)
    dataset = later(datasets_calls.dataset)
    upload_dataset = later(datasets_calls.upload_dataset)
    register_dataset = later(datasets_calls.register_dataset)
    wait_for_dataset = later(datasets_calls.wait_for_dataset)
    delete_dataset = later(datasets_calls.delete_dataset)

    # -- searches ----------------------------------------------------------------------

    preflight = later(searches_calls.preflight)
    create_search = later(searches_calls.create_search)
    searches = each_later(searches_calls.searches)
    search = later(searches_calls.search)
    cancel_search = later(searches_calls.cancel_search)
    pause_search = later(searches_calls.pause_search)
    resume_search = later(searches_calls.resume_search)
    update_search = later(searches_calls.update_search)
    tag_search = later(searches_calls.tag_search)
    bulk = later(searches_calls.bulk)
    clone_search = later(searches_calls.clone_search)
    extend_search = later(searches_calls.extend_search)
    derive = later(searches_calls.derive)
    reproduce_search = later(searches_calls.reproduce_search)
    wait = later(searches_calls.wait)
    new_events = later(searches_calls.new_events)
    past_events = each_later(searches_calls.past_events)
    events = each_later(searches_calls.events)
    stream = each_later(searches_calls.stream)
    metrics = later(searches_calls.metrics)
    architecture = later(searches_calls.architecture)
    artifacts = later(searches_calls.artifacts)
    download = later(searches_calls.download)
    front = later(searches_calls.front)
    lineage = later(searches_calls.lineage)
    compare = later(searches_calls.compare)

    # -- webhooks ----------------------------------------------------------------------

    create_webhook = later(webhooks_calls.create_webhook)
    webhooks = later(webhooks_calls.webhooks)
    webhook = later(webhooks_calls.webhook)
    change_webhook = later(webhooks_calls.change_webhook)
    delete_webhook = later(webhooks_calls.delete_webhook)
    rotate_webhook_secret = later(webhooks_calls.rotate_webhook_secret)
    test_webhook = later(webhooks_calls.send_test)
    webhook_deliveries = each_later(webhooks_calls.webhook_deliveries)
    webhook_delivery = later(webhooks_calls.webhook_delivery)
    redeliver = later(webhooks_calls.redeliver)

    # -- keys and the audit log --------------------------------------------------------

    create_key = later(keys_calls.create_key)
    keys = later(keys_calls.keys)
    key = later(keys_calls.key)
    rotate_key = later(keys_calls.rotate_key)
    revoke_key = later(keys_calls.revoke_key)
    audit = each_later(keys_calls.audit)

    # -- doing them --------------------------------------------------------------------

    async def perform(self, course: Course[Any]) -> AsyncIterator[Any]:
        """Do what a call asks for until it ends; yields the items it gives."""
        async with _Line(self._http) as line:
            while (wanted := course.wanted) is not None:
                if isinstance(wanted, Item):
                    yield wanted.value
                    course.answer(None)
                    continue
                try:
                    answer = await self._do(wanted, line)
                except (TailorClientError, httpx.TransportError) as error:
                    await line.close()
                    course.fail(error)
                else:
                    course.answer(answer)

    async def _do(self, wanted: Ask | Pause | Listen, line: "_Line") -> object:
        match wanted:
            case Ask():
                return await self._send(wanted)
            case Listen():
                return await line.next(wanted)
            case Pause(seconds):
                await asyncio.sleep(seconds)
                return None

    async def _send(self, ask: Ask) -> httpx.Response:
        told = arguments(ask)
        if isinstance(ask.content, FileBody):
            told["content"] = _pieces(ask.content)
        try:
            response: httpx.Response = await self._retrying(
                self._http.request, ask.method, ask.path, **told
            )
        except httpx.TransportError as error:
            raise ApiUnreachableError(
                f"no answer from {self._url}: {error}; is `tailor api` running there?"
            ) from error
        return checked(response)


async def _pieces(body: FileBody) -> AsyncIterator[bytes]:
    for piece in body:
        yield piece


class _Line:
    """A stream of events, open as long as somebody listens."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._open = AsyncExitStack()
        self._events: AsyncIterator[ServerSentEvent] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def next(self, wanted: Listen) -> ServerSentEvent | None:
        if self._events is None:
            source = await self._open.enter_async_context(
                aconnect_sse(
                    self._http,
                    "GET",
                    wanted.path,
                    headers={"Last-Event-ID": str(wanted.last_event_id)},
                    timeout=httpx.Timeout(TIMEOUT_SECONDS, read=SILENCE_SECONDS),
                )
            )
            if source.response.is_error:
                await source.response.aread()
                checked(source.response)
            self._events = aiter(source.aiter_sse())
        told = await anext(self._events, None)
        if told is None:
            await self.close()
        return told

    async def close(self) -> None:
        self._events = None
        await self._open.aclose()
