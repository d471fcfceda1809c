"""Searches, their events and their files as rows."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, Id


class Search(Base):
    """Budgets on targets, and what became of them. `version` grows with every change.

    Attributes:
        owner: the account whose search it is; `owner_key_id` is the key that made it.
        kind: what is asked for: a `search`, networks that another's supernet gives at other
            budgets (`derive`), more of another (`extend`), or another once more (`reproduce`).
        target_id: the first of its targets; `SearchTarget` has them all.
        parent_id: the search that this one comes from.
        body_sha256: of the request that made it under an idempotency key.
    """

    __tablename__ = "searches"
    __table_args__ = (
        Index(None, "status", "created_at"),
        Index(None, "status", "id"),
        Index(None, "owner", "id"),
        Index(None, "tags", postgresql_using="gin"),
        UniqueConstraint("owner", "idempotency_key"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    owner: Mapped[str] = mapped_column(Text)
    idempotency_key: Mapped[str | None] = mapped_column(Text)
    body_sha256: Mapped[str | None] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text, default="search")
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("searches.id"), index=True)
    tags: Mapped[dict[str, Any]] = mapped_column(default=dict)
    priority: Mapped[int] = mapped_column(default=0)
    target_id: Mapped[str] = mapped_column(ForeignKey("targets.id"), index=True)
    spec: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(Text)
    phase: Mapped[str] = mapped_column(Text)
    phase_since: Mapped[datetime]
    status_reason: Mapped[dict[str, Any] | None]
    progress: Mapped[dict[str, Any] | None]
    feasibility: Mapped[dict[str, Any] | None]
    seconds_by_phase: Mapped[dict[str, Any]]
    result: Mapped[dict[str, Any] | None]
    latency_model_id: Mapped[str | None] = mapped_column(ForeignKey("latency_models.id"))
    version: Mapped[int] = mapped_column()
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    archived_at: Mapped[datetime | None]

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - read by SQLAlchemy


class SearchTarget(Base):
    """A target that a search must satisfy, and the latency model it is priced by there."""

    __tablename__ = "search_targets"
    __table_args__ = (Index(None, "target_id", "search_id"),)

    search_id: Mapped[str] = mapped_column(ForeignKey("searches.id"), primary_key=True)
    target_id: Mapped[str] = mapped_column(ForeignKey("targets.id"), primary_key=True)
    latency_model_id: Mapped[str | None] = mapped_column(ForeignKey("latency_models.id"))


class SearchEvent(Base):
    """Something that happened to a search; appended, never changed."""

    __tablename__ = "search_events"

    search_id: Mapped[str] = mapped_column(ForeignKey("searches.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str] = mapped_column(Text)  # status, phase, metrics, measurement, warning
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class SearchArtifact(Base):
    """A file a search produced, under its name."""

    __tablename__ = "search_artifacts"

    search_id: Mapped[str] = mapped_column(ForeignKey("searches.id"), primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    sha256: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int]
    media_type: Mapped[str] = mapped_column(Text)
