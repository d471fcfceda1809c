"""API keys on the wire."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from service.auth.principal import Scope
from service.schemas import Moment, Name, Request, Resource


def _in_the_future(at: datetime) -> datetime:
    if at <= datetime.now(UTC):
        raise ValueError("it has passed already")
    return at


class KeyCreate(Request):
    """Ask for a new key.

    Attributes:
        account: what the key makes belongs to it; None: to an account of the key's name.
        expires_at: after which it opens nothing; None: never.
    """

    name: Name
    scope: Scope = "user"
    account: Name | None = None
    expires_at: Annotated[Moment, AfterValidator(_in_the_future)] | None = None


class KeyRotate(Request):
    """Ask for a new secret of a key.

    Attributes:
        grace_minutes: for which the old secret stays good, so that programs can change over.
    """

    grace_minutes: Annotated[float, Field(ge=0, le=7 * 24 * 60)] = 60.0


class KeyRead(Resource):
    """A key without its secret.

    Attributes:
        last_used_at: to about a minute; None: not since keys have noted it.
        previous_expires_at: until when the secret before the last rotation is good.
    """

    object: Literal["api_key"] = "api_key"
    id: str
    name: str
    account: str
    scope: Scope
    created_at: datetime
    created_by: str | None
    expires_at: datetime | None
    last_used_at: datetime | None
    previous_expires_at: datetime | None
    revoked_at: datetime | None


class KeyCreated(KeyRead):
    """A key with its new secret, which is shown this once."""

    token: str
