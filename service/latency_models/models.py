"""Latency models as rows: the fitted numbers as a JSON document, never a pickle."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, Id


class LatencyModel(Base):
    """One fit of a space on a target; the active one prices searches."""

    __tablename__ = "latency_models"
    __table_args__ = (
        Index(None, "target_id", "space_digest", "active"),
        UniqueConstraint("target_id", "space_digest", "version"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    target_id: Mapped[str] = mapped_column(ForeignKey("targets.id"))
    space: Mapped[str] = mapped_column(Text)
    space_digest: Mapped[str] = mapped_column(Text)
    version: Mapped[int]  # 1, 2, ... of a space on a target
    document: Mapped[dict[str, Any]]
    report: Mapped[dict[str, Any]]
    active: Mapped[bool]
    stale: Mapped[dict[str, Any] | None]  # why it no longer holds: code, text, since
    created_at: Mapped[datetime]
