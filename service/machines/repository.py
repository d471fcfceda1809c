"""Every statement on machines."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from search_core.effort import MachineProfile
from service.db.base import new_id, utc_now
from service.db.database import take_turns
from service.machines.models import Machine


def find_machine(session: Session, key: str) -> Machine | None:
    """The machine of that key."""
    return session.scalars(select(Machine).where(Machine.key == key)).first()


def last_seen_machine(session: Session) -> Machine | None:
    """The machine on which a worker started last."""
    statement = select(Machine).order_by(Machine.seen_at.desc(), Machine.id.desc()).limit(1)
    return session.scalars(statement).first()


def keep_profile(session: Session, key: str, host: str, profile: MachineProfile) -> Machine:
    """The machine of that key with this profile, created if it is new, and seen now."""
    take_turns(session, f"machine:{key}")
    now = utc_now()
    machine = find_machine(session, key)
    if machine is None:
        machine = Machine(id=new_id("mch"), key=key, created_at=now)
        session.add(machine)
    machine.host, machine.document, machine.seen_at = host, profile.to_document(), now
    session.flush()
    return machine


def list_machines(session: Session, cursor: str | None, limit: int) -> Sequence[Machine]:
    """A page of machines, newest first."""
    statement = select(Machine).order_by(Machine.id.desc()).limit(limit)
    if cursor:
        statement = statement.where(Machine.id < cursor)
    return session.scalars(statement).all()
