"""What a client is to do, as values: calls yield them, and a client of either kind does them.

A call is a generator. It yields an `Ask` and is sent the answer, a `Pause` and is sent nothing,
or a `Listen` and is sent the next server-sent event, None at their end; what goes wrong is
raised in it. So a call is written once, whether its client blocks or is awaited.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from inspect import Parameter, Signature, signature
from json import dumps
from typing import Any, Generic, TypeVar

from httpx import Response
from pydantic import BaseModel

from service.client.errors import ApiError
from service.client.files import FileBody
from service.schemas import Page

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Ask:
    """A request of the API; its answer is an `httpx.Response` without an error."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    content: bytes | FileBody | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None


@dataclass(frozen=True)
class Pause:
    """A time to wait, in seconds."""

    seconds: float


@dataclass(frozen=True)
class Listen:
    """The next event of a stream, which is opened at the first and closed after the last."""

    path: str
    last_event_id: int


@dataclass(frozen=True)
class Item(Generic[T]):
    """One of the things that a call gives one after the other."""

    value: T


Steps = Generator[Ask | Pause | Listen, Any, T]
"""A call that returns a T."""

Items = Generator[Ask | Pause | Listen | Item[T], Any, None]
"""A call that gives a T after the other."""


def get(path: str, model: type[Model], **params: Any) -> Steps[Model]:
    """One resource; parameters that are None are not sent."""
    answer = yield Ask("GET", path, params=given(params))
    return model.model_validate(answer.json())


def post(path: str, body: Mapping[str, Any] | None, model: type[Model]) -> Steps[Model]:
    """What a change is answered with."""
    answer = yield Ask("POST", path, json=body)
    return model.model_validate(answer.json())


def pages(path: str, model: type[Model], **params: Any) -> Items[Model]:
    """Every item of a list, page by page."""
    cursor: str | None = None
    while True:
        page = yield from _page(path, model, cursor, params)
        for item in page.items:
            yield Item(item)
        if (cursor := page.next_cursor) is None:
            return


def listed(path: str, model: type[Model], **params: Any) -> Steps[list[Model]]:
    """Every item of a list at once."""
    found: list[Model] = []
    cursor: str | None = None
    while True:
        page = yield from _page(path, model, cursor, params)
        found += page.items
        if (cursor := page.next_cursor) is None:
            return found


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _page(
    path: str, model: type[Model], cursor: str | None, params: Mapping[str, Any]
) -> Steps[Page[Model]]:
    page: type[Page[Model]] = Page[model]  # type: ignore[valid-type]
    return (yield from get(path, page, **{**params, "cursor": cursor}))


# -- doing what calls ask for ----------------------------------------------------------


class Course(Generic[T]):
    """A call under way: what it wants next, and in the end its result."""

    def __init__(self, call: Generator[Any, Any, T]) -> None:
        self._call = call
        self.wanted: Any = None
        """None once it has ended."""
        self.result: T | None = None
        self._go_on(partial(next, call))

    def answer(self, value: object) -> None:
        """Go on with what was wanted."""
        self._go_on(partial(self._call.send, value))

    def fail(self, error: Exception) -> None:
        """Go on with what went wrong instead."""
        self._go_on(partial(self._call.throw, error))

    def _go_on(self, step: Callable[[], Any]) -> None:
        try:
            self.wanted = step()
        except StopIteration as ended:
            self.wanted, self.result = None, ended.value


def arguments(ask: Ask) -> dict[str, Any]:
    """What a session of `httpx` needs to send it."""
    headers, content = dict(ask.headers), ask.content
    if ask.json is not None:
        # httpx refuses NaN; the API answers it with the name of the field
        content, headers["Content-Type"] = dumps(ask.json).encode(), "application/json"
    told = {"params": ask.params, "headers": headers, "content": content}
    return told if ask.timeout is None else {**told, "timeout": ask.timeout}


def checked(response: Response) -> Response:
    """The response.

    Raises:
        ApiError: it is a problem.
    """
    if response.is_error:
        try:
            problem = response.json()
        except ValueError:
            problem = {"detail": response.text[:500]}
        raise ApiError(response.status_code, problem)
    return response


def like(method: Method, call: Callable[..., Any]) -> Method:
    """`method` with the name, the parameters and the documentation of the call that it does."""
    for name in ("__name__", "__qualname__", "__doc__"):
        setattr(method, name, getattr(call, name))
    declared = signature(call)
    self_ = Parameter("self", Parameter.POSITIONAL_ONLY)
    shown = declared.replace(
        parameters=[self_, *declared.parameters.values()], return_annotation=Signature.empty
    )
    method.__signature__ = shown  # type: ignore[attr-defined]
    return method
