"""Kits, tasks, uploaded batches and measurements as rows."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, Id


class Kit(Base):
    """Everything to measure before a space can be searched on a target."""

    __tablename__ = "kits"
    __table_args__ = (UniqueConstraint("target_id", "space_digest"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    target_id: Mapped[str] = mapped_column(ForeignKey("targets.id"))
    space: Mapped[str] = mapped_column(Text)
    space_digest: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]


class MeasurementTask(Base):
    """One model file to measure on a target; leased by an agent, fenced like a job."""

    __tablename__ = "measurement_tasks"
    __table_args__ = (Index(None, "target_id", "status", "effort", "created_at"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    target_id: Mapped[str] = mapped_column(ForeignKey("targets.id"))
    kit_id: Mapped[str | None] = mapped_column(ForeignKey("kits.id"), index=True)
    search_id: Mapped[str | None] = mapped_column(ForeignKey("searches.id"), index=True)
    subject: Mapped[str] = mapped_column(Text)
    effort: Mapped[str] = mapped_column(Text)  # table, certificate
    model_sha256: Mapped[str] = mapped_column(Text, index=True)
    anchor_sha256: Mapped[str] = mapped_column(Text, index=True)
    status: Mapped[str] = mapped_column(Text)  # queued, leased, done, failed, cancelled
    tries: Mapped[int] = mapped_column(default=0)
    fence: Mapped[int] = mapped_column(default=0)
    agent_id: Mapped[str | None] = mapped_column(ForeignKey("agents.id"))
    lease_expires_at: Mapped[datetime | None]
    failure: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]


class UploadedBatch(Base):
    """A batch an agent uploaded and what it was told; a repeated upload gets the same answer."""

    __tablename__ = "uploaded_batches"

    agent_id: Mapped[str] = mapped_column(ForeignKey("agents.id"), primary_key=True)
    batch_id: Mapped[str] = mapped_column(Text, primary_key=True)
    report: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class Measurement(Base):
    """A latency as an agent reported it; appended, never changed. Fields as in the predictor."""

    __tablename__ = "measurements"
    __table_args__ = (Index(None, "target_id", "subject", "created_at"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    task_id: Mapped[str] = mapped_column(ForeignKey("measurement_tasks.id"), unique=True)
    target_id: Mapped[str] = mapped_column(ForeignKey("targets.id"))
    agent_id: Mapped[str] = mapped_column(ForeignKey("agents.id"))
    subject: Mapped[str] = mapped_column(Text)
    model_sha256: Mapped[str] = mapped_column(Text)
    latency_ms: Mapped[float]
    p10_ms: Mapped[float]
    p90_ms: Mapped[float]
    n: Mapped[int]
    thread_cpu_ms: Mapped[float]
    contended_share: Mapped[float]
    anchor_ms: Mapped[float]
    flagged: Mapped[bool]
    note: Mapped[str] = mapped_column(Text)
    protocol_version: Mapped[int]
    facts: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
