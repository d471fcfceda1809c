"""Targets as rows."""

from datetime import datetime
from typing import Any

from sqlalchemy import Text
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, Id


class Target(Base):
    """A device model with its runtime and settings; one row a profile."""

    __tablename__ = "targets"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    profile: Mapped[dict[str, Any]]
    profile_digest: Mapped[str] = mapped_column(Text, unique=True)
    created_at: Mapped[datetime]
