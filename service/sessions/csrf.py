"""What proves that a request with a session's cookie was meant by the page that sent it.

A browser sends the cookie along with any request to this origin, whoever had it made. A page of
another origin can neither read the token nor choose the `Origin` header.
"""

import hashlib
import hmac
from urllib.parse import urlsplit

from starlette.requests import Request

from service.errors import ForbiddenError
from service.settings import Settings

COOKIE = "tailor_session"
HEADER = "X-CSRF-Token"
_SAFE = ("GET", "HEAD", "OPTIONS")


def csrf_token(token: str) -> str:
    """What goes with a session's secret; whoever has it cannot find the secret."""
    return hmac.new(token.encode(), b"csrf", hashlib.sha256).hexdigest()


def refuse_forged(request: Request, token: str, settings: Settings) -> None:
    """Let a request with a session's cookie pass that changes nothing, or that was meant.

    Raises:
        ForbiddenError: it could come from another site's page.
    """
    if request.method in _SAFE:
        return
    given = request.headers.get(HEADER, "")
    if not hmac.compare_digest(given.encode(), csrf_token(token).encode()):
        raise ForbiddenError(
            f"send the session's csrf_token in the header {HEADER}; GET /v1/sessions/self tells it"
        )
    origin, own = request.headers.get("origin"), _own_origin(request, settings)
    if origin != own:
        raise ForbiddenError(
            f"the request comes from {origin or 'no origin'}, not from {own}; where people reach "
            "the API by another address, set TAILOR_PUBLIC_URL to it"
        )


def _own_origin(request: Request, settings: Settings) -> str:
    url = urlsplit(settings.public_url or str(request.base_url))
    return f"{url.scheme}://{url.netloc}"
