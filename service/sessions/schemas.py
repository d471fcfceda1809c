"""Sessions on the wire."""

from datetime import datetime
from typing import Literal

from service.auth.principal import Scope
from service.schemas import Resource


class SessionRead(Resource):
    """A browser's session; the cookie alone opens it.

    Attributes:
        csrf_token: to be sent as `X-CSRF-Token` with every request that changes something.
        idle_minutes: after which it ends when it is not used.
    """

    object: Literal["session"] = "session"
    id: str
    key_id: str
    name: str
    account: str
    scope: Scope
    csrf_token: str
    idle_minutes: float
    created_at: datetime
    expires_at: datetime
