"""Which route a request has come to."""

from starlette.types import Scope


def route_template(scope: Scope) -> str:
    """The route that served a request, such as ``/v1/searches/{search_id}``; never an id.

    A route knows its path without the prefixes that it is included under, so these are what
    the request's path has more of.
    """
    own: str | None = getattr(scope.get("route"), "path", None)
    if own is None:
        return "none"
    if ":path}" in own:
        return own
    n_more = scope["path"].count("/") - own.count("/")
    return "/".join(scope["path"].split("/")[: n_more + 1]) + own
