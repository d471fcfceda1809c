"""Every statement on agents and enrolment codes."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from service.agents.models import Agent, AgentTarget, EnrolmentCode
from service.auth.tokens import new_code, new_token, token_hash
from service.db.base import new_id, utc_now
from service.errors import NotFoundError


def create_code(
    session: Session, created_by: str, minutes: float, search_space: str | None
) -> tuple[EnrolmentCode, str]:
    """A new one-time code; only its hash is stored."""
    code = new_code()
    row = EnrolmentCode(
        code_hash=token_hash(code),
        created_by=created_by,
        search_space=search_space,
        expires_at=utc_now() + timedelta(minutes=minutes),
    )
    session.add(row)
    return row, code


def space_of_code(session: Session, code: str) -> str | None:
    """The search space that an unused code brings with it."""
    return session.scalar(
        select(EnrolmentCode.search_space).where(
            EnrolmentCode.code_hash == token_hash(code.strip().upper()),
            EnrolmentCode.used_at.is_(None),
        )
    )


def redeem_code(session: Session, code: str) -> EnrolmentCode | None:
    """Use a code up; None when it is unknown, used or expired."""
    now = utc_now()
    return session.scalars(
        update(EnrolmentCode)
        .where(
            EnrolmentCode.code_hash == token_hash(code.strip().upper()),
            EnrolmentCode.used_at.is_(None),
            EnrolmentCode.expires_at > now,
        )
        .values(used_at=now)
        .returning(EnrolmentCode)
    ).first()


def create_agent(
    session: Session, owner: str, target_ids: Sequence[str], name: str, version: str
) -> tuple[Agent, str]:
    """A new agent of these targets for an account and its token, which nobody can read again."""
    token = new_token("tla")
    now = utc_now()
    agent = Agent(
        id=new_id("agt"),
        owner=owner,
        name=name,
        version=version,
        token_hash=token_hash(token),
        created_at=now,
        last_seen_at=now,
    )
    session.add(agent)
    session.flush()
    for position, target_id in enumerate(dict.fromkeys(target_ids)):
        session.add(AgentTarget(agent_id=agent.id, target_id=target_id, position=position))
    return agent, token


def find_agent_by_token(session: Session, token: str) -> Agent | None:
    """The agent that may use this token."""
    return session.scalars(
        select(Agent).where(Agent.token_hash == token_hash(token), Agent.revoked_at.is_(None))
    ).first()


def get_agent(session: Session, agent_id: str) -> Agent:
    """The agent of that id.

    Raises:
        NotFoundError: there is none.
    """
    agent = session.get(Agent, agent_id)
    if agent is None:
        raise NotFoundError(f"no agent has id {agent_id}")
    return agent


def seen(session: Session, agent_id: str, **told: object) -> None:
    """Note that the agent is alive, and what else it told."""
    session.execute(
        update(Agent).where(Agent.id == agent_id).values(last_seen_at=utc_now(), **told)
    )


def count_items(
    session: Session, agent_id: str, *, accepted: int, rejected: int, flagged: int
) -> None:
    """Add to what is known of the agent's uploads; an upload is a sign of life, too."""
    session.execute(
        update(Agent)
        .where(Agent.id == agent_id)
        .values(
            accepted=Agent.accepted + accepted,
            rejected=Agent.rejected + rejected,
            flagged=Agent.flagged + flagged,
            last_seen_at=utc_now(),
        )
    )


def list_agents(session: Session, cursor: str | None, limit: int) -> Sequence[Agent]:
    """A page of agents, newest first."""
    statement = select(Agent).order_by(Agent.id.desc()).limit(limit)
    if cursor:
        statement = statement.where(Agent.id < cursor)
    return session.scalars(statement).all()


def agents_of(session: Session, target_id: str) -> Sequence[Agent]:
    """The agents of a target that are not revoked."""
    return session.scalars(
        select(Agent)
        .join(AgentTarget, AgentTarget.agent_id == Agent.id)
        .where(AgentTarget.target_id == target_id, Agent.revoked_at.is_(None))
        .order_by(Agent.id)
    ).all()


def n_online(session: Session, target_id: str, offline_seconds: float) -> int:
    """How many agents of a target were heard of lately."""
    since = utc_now() - timedelta(seconds=offline_seconds)
    return (
        session.scalar(
            select(func.count())
            .select_from(Agent)
            .join(AgentTarget, AgentTarget.agent_id == Agent.id)
            .where(
                AgentTarget.target_id == target_id,
                Agent.revoked_at.is_(None),
                Agent.last_seen_at > since,
            )
        )
        or 0
    )


def revoke_agent(session: Session, agent_id: str) -> None:
    """Make an agent's token worthless at once.

    Raises:
        NotFoundError: no agent has that id.
    """
    agent = get_agent(session, agent_id)
    agent.revoked_at = agent.revoked_at or utc_now()
