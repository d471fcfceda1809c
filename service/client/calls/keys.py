"""Calls about keys and the audit log."""

from datetime import datetime

from service.audit.schemas import AuditEntryRead
from service.auth.schemas import KeyCreated, KeyRead
from service.client.asking import Ask, Items, Steps, get, listed, pages, post


def create_key(
    name: str,
    scope: str = "user",
    *,
    account: str | None = None,
    expires_at: datetime | None = None,
) -> Steps[KeyCreated]:
    """A new API key with its secret; without an account, of one of the key's name."""
    body = {
        "name": name,
        "scope": scope,
        "account": account,
        "expires_at": expires_at.isoformat() if expires_at else None,
    }
    return (yield from post("/v1/keys", body, KeyCreated))


def keys() -> Steps[list[KeyRead]]:
    """Every API key, without secrets, newest first."""
    return (yield from listed("/v1/keys", KeyRead))


def key(key_id: str = "self") -> Steps[KeyRead]:
    """One API key; by default the one this client uses."""
    return (yield from get(f"/v1/keys/{key_id}", KeyRead))


def rotate_key(key_id: str = "self", *, grace_minutes: float = 60.0) -> Steps[KeyCreated]:
    """A key with a new secret; the old one is good for some minutes more.

    This client goes on with the secret it was made with.
    """
    body = {"grace_minutes": grace_minutes}
    return (yield from post(f"/v1/keys/{key_id}/rotate", body, KeyCreated))


def revoke_key(key_id: str) -> Steps[None]:
    """Make an API key worthless."""
    yield Ask("DELETE", f"/v1/keys/{key_id}")


def audit(
    *, actor: str | None = None, action: str | None = None, object_id: str | None = None
) -> Items[AuditEntryRead]:
    """Who changed what, newest first, page by page; needs an admin's key.

    Args:
        actor: id of a key, or an account.
        action: how it begins: ``DELETE``, ``POST /v1/keys``.
    """
    asked = {"actor": actor, "action": action, "object": object_id}
    yield from pages("/v1/audit", AuditEntryRead, **asked)
