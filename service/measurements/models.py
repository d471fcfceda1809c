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
    until_half_width: Mapped[float | None]  # relative; None: everything is measured
    created_at: Mapped[datetime]


class KitItem(Base):
    """One thing a kit needs, and the task that measures it; kits share tasks."""

    __tablename__ = "kit_items"

    kit_id: Mapped[str] = mapped_column(ForeignKey("kits.id"), primary_key=True)
    subject: Mapped[str] = mapped_column(Text, primary_key=True)
    task_id: Mapped[str] = mapped_column(ForeignKey("measurement_tasks.id"), index=True)
    role: Mapped[str] = mapped_column(Text)  # block, calibration, held_out


class KitFile(Base):
    """The model file that was built for a subject once and for all."""

    __tablename__ = "kit_files"

    subject: Mapped[str] = mapped_column(Text, primary_key=True)
    precision: Mapped[str] = mapped_column(Text, primary_key=True)
    batch: Mapped[int] = mapped_column(primary_key=True)
    builder_version: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(Text, index=True)
    n_bytes: Mapped[int]


class MeasurementTask(Base):
    """One model file to measure on a target; leased by an agent, fenced like a job."""

    __tablename__ = "measurement_tasks"
    __table_args__ = (
        Index(None, "target_id", "status", "effort", "priority"),
        Index(None, "target_id", "subject"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    target_id: Mapped[str] = mapped_column(ForeignKey("targets.id"))
    purpose: Mapped[str] = mapped_column(Text)  # kit, canary, search
    search_id: Mapped[str | None] = mapped_column(ForeignKey("searches.id"), index=True)
    only_agent_id: Mapped[str | None] = mapped_column(ForeignKey("agents.id"))
    subject: Mapped[str] = mapped_column(Text)
    effort: Mapped[str] = mapped_column(Text)  # table, certificate
    priority: Mapped[float] = mapped_column(default=0.0)
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
    sigma_ms: Mapped[float | None]
    n: Mapped[int]
    thread_cpu_ms: Mapped[float | None]
    contended_share: Mapped[float]
    anchor_ms: Mapped[float]
    provider: Mapped[str] = mapped_column(Text)
    measured_at: Mapped[datetime]
    grade: Mapped[str] = mapped_column(Text)
    flagged: Mapped[bool]
    note: Mapped[str] = mapped_column(Text)
    quarantined: Mapped[list[Any]]
    protocol_version: Mapped[int]
    facts: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
