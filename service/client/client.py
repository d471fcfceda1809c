"""The Python client: what the command line and the demo use, and nothing they could not.

Its calls are in `service.client.calls`; here they are done, one after the other.
`AsyncClient` does the same ones for whoever awaits them.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx
from httpx_sse import ServerSentEvent, connect_sse
from tenacity import Retrying

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
from service.client.errors import ApiUnreachableError, TailorClientError
from service.client.retrying import rules

P = ParamSpec("P")
T = TypeVar("T")
TIMEOUT_SECONDS = 60.0
SILENCE_SECONDS = 45.0  # a stream says at least every 15 that it is alive


def now(call: Callable[P, Steps[T]]) -> "Callable[Concatenate[Client, P], T]":
    """The method of a client that does this call."""

    def method(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        course = Course(call(*args, **kwargs))
        for _ in client.perform(course):
            raise TypeError(f"{call.__name__} gives several things: use `each`")
        return course.result  # type: ignore[return-value]

    return like(method, call)


def each(call: Callable[P, Items[T]]) -> "Callable[Concatenate[Client, P], Iterator[T]]":
    """The method of a client that does this call as far as its items are taken."""

    def method(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        yield from client.perform(Course(call(*args, **kwargs)))

    return like(method, call)


class Client:
    """A session with the API; every answer is typed, every problem an `ApiError`.

    Requests are retried for some seconds while nobody answers, and when the API finds them too
    many; creations carry an idempotency key, so a repeated one creates nothing twice.

    Args:
        url: of the API, for example ``http://127.0.0.1:8000``.
        api_key: ``tlr_...``.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_SECONDS)
        self._retrying = Retrying(**rules())
        self._url = url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the sockets."""
        self._http.close()

    # -- targets and measuring ---------------------------------------------------------

    targets = now(measuring_calls.targets)
    target = now(measuring_calls.target)
    agents = now(measuring_calls.agents)
    agent = now(measuring_calls.agent)
    create_enrolment_code = now(measuring_calls.create_enrolment_code)
    drain_agent = now(measuring_calls.drain_agent)
    resume_agent = now(measuring_calls.resume_agent)
    revoke_agent = now(measuring_calls.revoke_agent)
    create_kit = now(measuring_calls.create_kit)
    measurements = each(measuring_calls.measurements)
    kit = now(measuring_calls.kit)
    kit_manifest = now(measuring_calls.kit_manifest)
    kit_file = now(measuring_calls.kit_file)
    latency_models = now(measuring_calls.latency_models)
    active_latency_model = now(measuring_calls.active_latency_model)
    latency_model = now(measuring_calls.latency_model)
    activate_latency_model = now(measuring_calls.activate_latency_model)

    # -- predictions -------------------------------------------------------------------

    predict = now(predictions_calls.predict)
    predict_with = now(predictions_calls.predict_with)
    what_if = now(predictions_calls.what_if)
    predict_file = now(predictions_calls.predict_file)

    # -- machines, workers and spaces --------------------------------------------------

    machines = now(workers_calls.machines)
    workers = now(workers_calls.workers)
    worker = now(workers_calls.worker)
    drain_worker = now(workers_calls.drain_worker)
    search_spaces = now(workers_calls.search_spaces)

    # -- data sets ---------------------------------------------------------------------

    datasets = now(datasets_calls.datasets)
    dataset = now(datasets_calls.dataset)
    upload_dataset = now(datasets_calls.upload_dataset)
    register_dataset = now(datasets_calls.register_dataset)
    wait_for_dataset = now(datasets_calls.wait_for_dataset)
    delete_dataset = now(datasets_calls.delete_dataset)

    # -- searches ----------------------------------------------------------------------

    preflight = now(searches_calls.preflight)
    create_search = now(searches_calls.create_search)
    searches = each(searches_calls.searches)
    search = now(searches_calls.search)
    cancel_search = now(searches_calls.cancel_search)
    pause_search = now(searches_calls.pause_search)
    resume_search = now(searches_calls.resume_search)
    update_search = now(searches_calls.update_search)
    tag_search = now(searches_calls.tag_search)
    bulk = now(searches_calls.bulk)
    clone_search = now(searches_calls.clone_search)
    extend_search = now(searches_calls.extend_search)
    derive = now(searches_calls.derive)
    reproduce_search = now(searches_calls.reproduce_search)
    wait = now(searches_calls.wait)
    new_events = now(searches_calls.new_events)
    past_events = each(searches_calls.past_events)
    events = each(searches_calls.events)
    stream = each(searches_calls.stream)
    metrics = now(searches_calls.metrics)
    architecture = now(searches_calls.architecture)
    artifacts = now(searches_calls.artifacts)
    download = now(searches_calls.download)
    front = now(searches_calls.front)
    lineage = now(searches_calls.lineage)
    compare = now(searches_calls.compare)

    # -- webhooks ----------------------------------------------------------------------

    create_webhook = now(webhooks_calls.create_webhook)
    webhooks = now(webhooks_calls.webhooks)
    webhook = now(webhooks_calls.webhook)
    change_webhook = now(webhooks_calls.change_webhook)
    delete_webhook = now(webhooks_calls.delete_webhook)
    rotate_webhook_secret = now(webhooks_calls.rotate_webhook_secret)
    test_webhook = now(webhooks_calls.send_test)
    webhook_deliveries = each(webhooks_calls.webhook_deliveries)
    webhook_delivery = now(webhooks_calls.webhook_delivery)
    redeliver = now(webhooks_calls.redeliver)

    # -- keys and the audit log --------------------------------------------------------

    create_key = now(keys_calls.create_key)
    keys = now(keys_calls.keys)
    key = now(keys_calls.key)
    rotate_key = now(keys_calls.rotate_key)
    revoke_key = now(keys_calls.revoke_key)
    audit = each(keys_calls.audit)

    # -- doing them --------------------------------------------------------------------

    def perform(self, course: Course[Any]) -> Iterator[Any]:
        """Do what a call asks for until it ends; yields the items it gives."""
        with _Line(self._http) as line:
            while (wanted := course.wanted) is not None:
                if isinstance(wanted, Item):
                    yield wanted.value
                    course.answer(None)
                    continue
                try:
                    answer = self._do(wanted, line)
                except (TailorClientError, httpx.TransportError) as error:
                    line.close()
                    course.fail(error)
                else:
                    course.answer(answer)

    def _do(self, wanted: Ask | Pause | Listen, line: "_Line") -> object:
        match wanted:
            case Ask():
                return self._send(wanted)
            case Listen():
                return line.next(wanted)
            case Pause(seconds):
                time.sleep(seconds)
                return None

    def _send(self, ask: Ask) -> httpx.Response:
        try:
            response: httpx.Response = self._retrying(
                self._http.request, ask.method, ask.path, **arguments(ask)
            )
        except httpx.TransportError as error:
            raise ApiUnreachableError(
                f"no answer from {self._url}: {error}; is `tailor api` running there?"
            ) from error
        return checked(response)


class _Line:
    """A stream of events, open as long as somebody listens."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._open = ExitStack()
        self._events: Iterator[ServerSentEvent] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def next(self, wanted: Listen) -> ServerSentEvent | None:
        if self._events is None:
            source = self._open.enter_context(
                connect_sse(
                    self._http,
                    "GET",
                    wanted.path,
                    headers={"Last-Event-ID": str(wanted.last_event_id)},
                    timeout=httpx.Timeout(TIMEOUT_SECONDS, read=SILENCE_SECONDS),
                )
            )
            if source.response.is_error:
                source.response.read()
                checked(source.response)
            self._events = source.iter_sse()
        told = next(self._events, None)
        if told is None:
            self.close()
        return told

    def close(self) -> None:
        self._events = None
        self._open.close()
