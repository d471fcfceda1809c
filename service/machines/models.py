"""Machines that train as rows."""

from datetime import datetime
from typing import Any

from sqlalchemy import Text
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, Id


class Machine(Base):
    """A machine with the settings its attempts train under; one row a key."""

    __tablename__ = "machine_profiles"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    key: Mapped[str] = mapped_column(Text, unique=True)
    host: Mapped[str] = mapped_column(Text)
    document: Mapped[dict[str, Any]]  # search_core.effort.MachineProfile
    created_at: Mapped[datetime]
    seen_at: Mapped[datetime]  # when a worker last started there
