"""Agents and enrolment codes as rows; only hashes of their secrets are kept."""

from datetime import datetime

from sqlalchemy import ForeignKey, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from service.db.base import Base, Id


class EnrolmentCode(Base):
    """A one-time code that turns a device into an agent."""

    __tablename__ = "enrolment_codes"

    code_hash: Mapped[str] = mapped_column(Text, primary_key=True)
    created_by: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    search_space: Mapped[str | None] = mapped_column(Text)
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class AgentTarget(Base):
    """What an agent may measure for: its token's scope."""

    __tablename__ = "agent_targets"

    agent_id: Mapped[str] = mapped_column(ForeignKey("agents.id"), primary_key=True)
    target_id: Mapped[str] = mapped_column(ForeignKey("targets.id"), primary_key=True, index=True)
    position: Mapped[int]


class Agent(Base):
    """A process on a device that measures for its targets.

    Attributes:
        owner: the account whose code it redeemed; empty where that is no longer known.
        activity, journal_batches: as its last heartbeat told.
        accepted, rejected, flagged: items of its uploads, counted.
    """

    __tablename__ = "agents"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    version: Mapped[str] = mapped_column(Text)
    token_hash: Mapped[str] = mapped_column(Text, unique=True)
    draining: Mapped[bool] = mapped_column(default=False)
    activity: Mapped[str] = mapped_column(Text, default="")
    journal_batches: Mapped[int] = mapped_column(default=0)
    accepted: Mapped[int] = mapped_column(default=0)
    rejected: Mapped[int] = mapped_column(default=0)
    flagged: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]

    _targets: Mapped[list[AgentTarget]] = relationship(
        lazy="selectin", order_by=AgentTarget.position
    )

    @property
    def target_ids(self) -> list[str]:
        """The targets its token is scoped to, in the order it named them."""
        return [row.target_id for row in self._targets]


class SigningKey(Base):
    """What tasks and kits are signed with; agents learn its public half when they enrol."""

    __tablename__ = "signing_keys"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    private_key: Mapped[str] = mapped_column(Text)  # base64 of the raw Ed25519 key
    created_at: Mapped[datetime]
