"""Whether a target still is what was measured: its runtime, and its canaries."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from statistics import median

from sqlalchemy.orm import Session

from predictor.kits import anchor_item, canary_items
from predictor.measurements import TargetProfile
from service.agents.models import Agent
from service.db.base import utc_now
from service.latency_models.repository import active_models, clear_stale, mark_stale
from service.measurements.models import Measurement
from service.measurements.repository import (
    add_task,
    canaries_of,
    find_files,
    find_kit,
    latest_canary,
    supersede,
)
from service.targets.repository import get_target
from service.webhooks.outbox import queue_stale_target

TOLERANCE = 0.03
"""Largest accepted drift of the canaries, relative."""

_CANARY_PRIORITY = 1e9  # what tells whether the rest can be believed comes first


def note_profile(session: Session, target_id: str, told: TargetProfile) -> str | None:
    """Compare what an agent says it is with its target; another runtime is another target.

    Returns:
        What has changed and what to do, None when nothing has.
    """
    target = get_target(session, target_id)
    known = target.profile
    changes = [
        f"{name.replace('_', ' ')} {known.get(name)} -> {value}"
        for name, value in asdict(told).items()
        if value != known.get(name)
    ]
    if not changes:
        clear_stale(session, target_id, "profile_changed")  # it may have been changed back
        return None
    text = (
        f"the device has changed ({'; '.join(changes)}), so it is another target now: "
        "enrol it again with a fresh code"
    )
    if mark_stale(session, target_id, "profile_changed", text):
        queue_stale_target(session, target_id, text)
    return text


def plan_canaries(session: Session, target_id: str, agent: Agent, hours: float) -> None:
    """Ask an agent for the canaries of a target when it was not asked for `hours`."""
    latest = latest_canary(session, target_id, agent.id)
    if latest is not None and utc_now() - latest < timedelta(hours=hours):
        return
    profile = get_target(session, target_id).profile
    items = canary_items()
    subjects = [item.subject for item in (*items, anchor_item())]
    files = find_files(session, subjects, profile["precision"], profile["batch"])
    if len(files) < len(subjects):
        return  # no kit was ever asked for: there is nothing that could drift
    for item in items:
        add_task(
            session,
            target_id=target_id,
            purpose="canary",
            only_agent_id=agent.id,
            subject=item.subject,
            effort="table",
            model_sha256=files[item.subject].sha256,
            anchor_sha256=files[anchor_item().subject].sha256,
            priority=_CANARY_PRIORITY,
        )


def check_canaries(session: Session, target_id: str, agent_id: str) -> None:
    """Mark the latency models of a target stale when an agent's canaries have drifted.

    Each is compared with what the same agent measured when the model was fitted; the median
    over the canaries counts. The kit of a stale model is measured anew.
    """
    canaries = canaries_of(session, target_id, agent_id)
    for row, _ in active_models(session, target_id):
        if row.stale is not None:
            continue
        drift = _drift(canaries, [c for c in canaries if c.created_at <= row.created_at])
        if drift is None or abs(drift) <= TOLERANCE:
            continue
        text = (
            f"the canaries take {1 + drift:.3g} times what they took when the model was fitted; "
            "the space is measured again"
        )
        mark_stale(session, target_id, "drifted", text, model_id=row.id)
        queue_stale_target(session, target_id, text)
        kit = find_kit(session, target_id, row.space_digest)
        if kit is not None:
            supersede(session, kit.id)


def _drift(canaries: Sequence[Measurement], before: Sequence[Measurement]) -> float | None:
    """Median relative change from the reference to the latest; None without both."""
    reference = {c.subject: c.latency_ms for c in before}  # the latest of each stays
    if not reference:
        reference = {c.subject: c.latency_ms for c in reversed(canaries)}
    latest = {c.subject: c for c in canaries}
    ids = {c.id for c in before}
    changes = [
        c.latency_ms / reference[s] - 1.0
        for s, c in latest.items()
        if s in reference and c.id not in ids
    ]
    return median(changes) if len(changes) == len(reference) and changes else None
