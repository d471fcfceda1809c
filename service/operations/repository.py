"""Every statement that metrics are read with; each is bounded or answered from an index."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Row, func, select
from sqlalchemy.orm import Session

from service.agents.models import Agent, AgentTarget
from service.db.database import store_time
from service.jobs.models import Job, JobAttempt
from service.latency_models.models import LatencyModel
from service.searches.models import Search
from service.searches.schemas import TERMINAL
from service.targets.models import Target
from service.webhooks.models import WebhookDelivery
from service.workers.models import WorkerRow

_OPEN = ("queued", "running", "paused")
_LATEST_SEARCHES = 200


class QueueDepth(NamedTuple):
    """Jobs of a kind that could be claimed, and how long the oldest of them has waited."""

    kind: str
    n: int
    oldest_seconds: float


class TargetAgents(NamedTuple):
    """The agents of a target."""

    target: str
    name: str
    n: int
    n_online: int


def queue_depths(session: Session) -> Sequence[QueueDepth]:
    """The claimable jobs by kind."""
    now = store_time(session)
    rows = session.execute(
        select(Job.kind, func.count(), func.min(Job.created_at))
        .where(Job.status == "queued", Job.blocked_on.is_(None))
        .group_by(Job.kind)
    )
    return [QueueDepth(kind, n, (now - first).total_seconds()) for kind, n, first in rows]


def open_jobs(session: Session) -> Sequence[Row[str, str, bool, int]]:
    """How many jobs have not ended: kind, status, whether they wait for something, count."""
    blocked = Job.blocked_on.is_not(None)
    return session.execute(
        select(Job.kind, Job.status, blocked, func.count())
        .where(Job.status.in_(_OPEN))
        .group_by(Job.kind, Job.status, blocked)
    ).all()


def overdue_leases(session: Session) -> int:
    """How many running jobs have a lease that ran out and that nobody has reaped yet."""
    overdue = select(func.count()).where(
        Job.status == "running", Job.lease_expires_at < store_time(session)
    )
    return session.scalar(overdue) or 0


def open_searches(session: Session) -> Sequence[Row[str, int]]:
    """How many searches have not ended, by status."""
    return session.execute(
        select(Search.status, func.count())
        .where(Search.status.not_in(TERMINAL))
        .group_by(Search.status)
    ).all()


def search_outcomes(session: Session) -> Sequence[Row[str, str | None, int]]:
    """How many searches have ended, by status and reason."""
    reason = Search.status_reason["code"].as_string()
    return session.execute(
        select(Search.status, reason, func.count())
        .where(Search.status.in_(TERMINAL))
        .group_by(Search.status, reason)
    ).all()


def attempt_outcomes(session: Session) -> dict[str, int]:
    """How many attempts have ended, by outcome."""
    rows = session.execute(
        select(JobAttempt.outcome, func.count())
        .where(JobAttempt.outcome.is_not(None))
        .group_by(JobAttempt.outcome)
    )
    return {outcome: n for outcome, n in rows if outcome is not None}


def phase_seconds(session: Session) -> dict[str, list[float]]:
    """What the latest searches that ended spent in each phase, sorted."""
    spent: dict[str, list[float]] = defaultdict(list)
    for of_search in session.scalars(
        select(Search.seconds_by_phase)
        .where(Search.status.in_(TERMINAL))
        .order_by(Search.id.desc())
        .limit(_LATEST_SEARCHES)
    ):
        for phase, seconds in of_search.items():
            spent[phase].append(seconds)
    return {phase: sorted(seconds) for phase, seconds in spent.items()}


def agents_online(session: Session, offline_seconds: float) -> Sequence[TargetAgents]:
    """The agents that may still measure, by target."""
    since = _ago(session, offline_seconds)
    online = func.count().filter(Agent.last_seen_at > since)
    rows = session.execute(
        select(Target.id, Target.name, func.count(), online)
        .join(AgentTarget, AgentTarget.target_id == Target.id)
        .join(Agent, Agent.id == AgentTarget.agent_id)
        .where(Agent.revoked_at.is_(None))
        .group_by(Target.id, Target.name)
    )
    return [TargetAgents(*row) for row in rows]


def uploaded_items(session: Session) -> tuple[int, int, int]:
    """Items that agents have uploaded: accepted, rejected, and accepted but flagged."""
    sums = [
        func.coalesce(func.sum(column), 0)
        for column in (Agent.accepted, Agent.rejected, Agent.flagged)
    ]
    accepted, rejected, flagged = map(int, session.execute(select(*sums)).one())
    return accepted, rejected, flagged


def workers_online(session: Session, offline_seconds: float) -> tuple[int, int]:
    """How many workers are there, and how many slots they have."""
    n, slots = session.execute(
        select(func.count(), func.coalesce(func.sum(WorkerRow.slots), 0)).where(
            WorkerRow.stopped_at.is_(None), WorkerRow.seen_at > _ago(session, offline_seconds)
        )
    ).one()
    return n, int(slots)


def active_models(session: Session) -> Sequence[Row[str, str, str, Any]]:
    """The report of every active latency model: target id, its name, space, held-out errors."""
    held_out = LatencyModel.report["held_out"]
    return session.execute(
        select(Target.id, Target.name, LatencyModel.space, held_out)
        .join(Target, Target.id == LatencyModel.target_id)
        .where(LatencyModel.active)
    ).all()


def deliveries(session: Session) -> Sequence[Row[str, int]]:
    """Webhook deliveries of the log by status."""
    return session.execute(
        select(WebhookDelivery.status, func.count()).group_by(WebhookDelivery.status)
    ).all()


def _ago(session: Session, seconds: float) -> datetime:
    return store_time(session) - timedelta(seconds=seconds)
