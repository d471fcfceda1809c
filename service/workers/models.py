"""Workers as rows."""

from datetime import datetime
from typing import Any

from sqlalchemy import Text
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, Id


class WorkerRow(Base):
    """A worker process and what it offers.

    Attributes:
        resources: CPUs, memory and GPUs of its machine that it may give to attempts.
        labels: what searches may ask for by name, such as ``gpu_model``.
        draining: it takes no new claim, and leaves when nothing runs any more.
        hand_back: what runs is handed back meanwhile, instead of finished.
        seen_at: when it last said that it lives.
        stopped_at: when it said that it leaves, or was found gone.
    """

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    host: Mapped[str] = mapped_column(Text)
    version: Mapped[str] = mapped_column(Text)
    slots: Mapped[int]
    resources: Mapped[dict[str, Any]]
    labels: Mapped[dict[str, Any]]
    draining: Mapped[bool] = mapped_column(default=False)
    hand_back: Mapped[bool] = mapped_column(default=False)
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    stopped_at: Mapped[datetime | None]
