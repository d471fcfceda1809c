"""The audit log on the wire."""

from datetime import datetime
from typing import Literal

from service.schemas import Resource


class AuditEntryRead(Resource):
    """One change that somebody made.

    Attributes:
        action: method and path as documented: ``DELETE /v1/keys/{key_id}``.
        object_id: what was made or changed.
        session_id: of the browser's session it was made from; None: with the key itself.
    """

    object: Literal["audit_entry"] = "audit_entry"
    id: str
    created_at: datetime
    account: str
    key_id: str
    key_name: str
    session_id: str | None
    action: str
    parameters: dict[str, str]
    object_id: str | None
    request_id: str
    address: str
