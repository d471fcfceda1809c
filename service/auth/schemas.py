"""API keys on the wire."""

from datetime import datetime
from typing import Literal

from service.schemas import Name, Request, Resource

Scope = Literal["user", "admin"]


class KeyCreate(Request):
    """Ask for a new key."""

    name: Name
    scope: Scope = "user"


class KeyRead(Resource):
    """A key without its secret."""

    object: Literal["api_key"] = "api_key"
    id: str
    name: str
    scope: Scope
    created_at: datetime
    revoked_at: datetime | None


class KeyCreated(KeyRead):
    """A new key with its secret, which is shown this once."""

    token: str
