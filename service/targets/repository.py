"""Every statement on targets."""

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import select
from sqlalchemy.orm import Session

from predictor.measurements import TargetProfile
from service.db.base import new_id, utc_now
from service.db.database import take_turns
from service.errors import InvalidRequestError, NotFoundError
from service.targets.models import Target


def get_target(session: Session, target_id: str) -> Target:
    """The target of that id.

    Raises:
        NotFoundError: there is none.
    """
    target = session.get(Target, target_id)
    if target is None:
        raise NotFoundError(f"no target has id {target_id}")
    return target


def named_target(session: Session, target_id: str) -> Target:
    """The target that a request's field ``target`` names.

    Raises:
        InvalidRequestError: there is none.
    """
    target = session.get(Target, target_id)
    if target is None:
        raise InvalidRequestError(
            f"no target has id {target_id!r}; GET /v1/targets lists them, and an agent "
            "that enrols brings its own",
            field="target",
        )
    return target


def ensure_target(session: Session, profile: TargetProfile) -> Target:
    """The target of that profile, created if it is new."""
    take_turns(session, f"target:{profile.digest}")
    target = session.scalars(select(Target).where(Target.profile_digest == profile.digest)).first()
    if target is None:
        target = Target(
            id=new_id("tgt"),
            name=f"{profile.device_model} · {profile.runtime} {profile.runtime_version} "
            f"{profile.execution_provider} · {profile.threads} thread(s) · {profile.precision}",
            profile=asdict(profile),
            profile_digest=profile.digest,
            created_at=utc_now(),
        )
        session.add(target)
        session.flush()
    return target


def list_targets(session: Session, cursor: str | None, limit: int) -> Sequence[Target]:
    """A page of targets, newest first."""
    statement = select(Target).order_by(Target.id.desc()).limit(limit)
    if cursor:
        statement = statement.where(Target.id < cursor)
    return session.scalars(statement).all()
