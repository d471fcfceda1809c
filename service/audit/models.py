"""The audit log as rows."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, Id


class AuditEntry(Base):
    """One change that somebody made; triggers in both stores refuse to change or delete it.

    Attributes:
        action: method and path as the API documents it: ``POST /v1/searches/{search_id}/cancel``.
        parameters: of the path.
        object_id: what was made or changed; None where it has no id.
    """

    __tablename__ = "audit_entries"
    __table_args__ = (
        Index(None, "account", "id"),
        Index(None, "key_id", "id"),
        Index(None, "object_id", "id"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    created_at: Mapped[datetime]
    account: Mapped[str] = mapped_column(Text)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    key_name: Mapped[str] = mapped_column(Text)
    session_id: Mapped[str | None] = mapped_column(Id)
    action: Mapped[str] = mapped_column(Text)
    parameters: Mapped[dict[str, Any]]
    object_id: Mapped[str | None] = mapped_column(Text)
    request_id: Mapped[str] = mapped_column(Text)
    address: Mapped[str] = mapped_column(Text)
