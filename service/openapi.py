"""The OpenAPI document, completed by the answers that are no route's own.

A route declares what it answers; which problems can occur besides follows from its method, its
parameters and who may ask, and is said here for all of them. Every answer above 399 is a
problem document, unless its route declares another.
"""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import ConfigDict, Field

from service.problems import MEDIA_TYPE
from service.schemas import Resource

_PROBES = ("/healthz", "/readyz")
_FASTAPIS_OWN = ("HTTPValidationError", "ValidationError")
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}


class ProblemField(Resource):
    """One thing wrong with one field of a request."""

    field: str
    message: str


class Problem(Resource):
    """What is wrong, and what to do about it (RFC 9457); some codes have further members."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str | None
    errors: list[ProblemField] = Field(default_factory=list)


class _Operation:
    """A route as the document has it."""

    def __init__(self, path: str, method: str, document: dict[str, Any]) -> None:
        self.path, self.method, self.document = path, method, document
        parameters = document.get("parameters", ())
        self.parameters = {(each["in"], each["name"]) for each in parameters}
        self.has_input = bool(parameters) or "requestBody" in document
        self.asks_who = bool(document.get("security"))
        self.has_conditions = ("header", "if-match") in self.parameters

    @property
    def names_something(self) -> bool:
        """Whether it is about things that may not be there."""
        return any(place == "path" for place, _ in self.parameters) or (
            self.path.startswith("/v1/") and self.has_input
        )


_OCCURS: Mapping[int, tuple[str, Callable[[_Operation], bool]]] = {
    304: (
        "It is the one you have.",
        lambda asked: ("header", "if-none-match") in asked.parameters,
    ),
    400: ("The request is not what its headers say.", lambda _: True),
    401: ("Nobody known asks.", lambda asked: asked.asks_who),
    403: ("The key, or the browser's request, may not do this.", lambda asked: asked.asks_who),
    404: ("There is none, or none that you may see.", lambda asked: asked.names_something),
    409: ("It is not in a state that allows this.", lambda asked: asked.method != "get"),
    412: ("It has changed since it was read.", lambda asked: asked.has_conditions),
    413: ("The body is too large.", lambda _: True),
    415: ("The body is encoded otherwise than with gzip.", lambda _: True),
    422: ("Something in the request is wrong; `errors` names it.", lambda asked: asked.has_input),
    428: ("Say with If-Match what is to be changed.", lambda asked: asked.has_conditions),
    429: ("Too many requests, or more than the quota.", lambda asked: asked.path not in _PROBES),
    500: ("The service is at fault; its log says why.", lambda _: True),
    503: ("Too busy, or the store does not answer; try again.", lambda _: True),
}


def complete_openapi(app: FastAPI) -> None:
    """Let the document that `app` serves tell of every answer."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(generate())  # kept in app.openapi_schema
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in _FASTAPIS_OWN:
        schemas.pop(name, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs") | {"Problem": problem}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            _complete_operation(_Operation(path, method, operation))


def _complete_operation(operation: _Operation) -> None:
    answers = operation.document["responses"]
    if answers.get("422", {}).get("description") == "Validation Error":
        del answers["422"]
    for status, (description, occurs) in _OCCURS.items():
        if occurs(operation):
            answers.setdefault(str(status), {"description": description})
    for status, answer in answers.items():
        if int(status) >= 400 and "content" not in answer:
            answer["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        if status in ("429", "503"):
            answer["headers"] = _RETRY_AFTER
    operation.document["responses"] = dict(sorted(answers.items()))
