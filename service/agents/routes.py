"""Routes of agents and enrolment."""

from fastapi import APIRouter, status

from service.agents.repository import (
    create_agent,
    create_code,
    list_agents,
    redeem_code,
    revoke_agent,
)
from service.agents.schemas import AgentCreate, AgentCreated, AgentRead, EnrolmentCodeCreated
from service.auth.access import User
from service.dependencies import CurrentSettings, Cursor, Limit, ReadSession, WriteSession
from service.errors import UnauthenticatedError
from service.schemas import Page, next_cursor
from service.targets.repository import ensure_target

router = APIRouter(tags=["agents"])


@router.post("/enrolment-codes", status_code=status.HTTP_201_CREATED)
def create_enrolment_code(
    session: WriteSession, settings: CurrentSettings, user: User
) -> EnrolmentCodeCreated:
    """A code that one agent may redeem within some minutes."""
    row, code = create_code(session, user.id, settings.enrolment_minutes)
    return EnrolmentCodeCreated(code=code, expires_at=row.expires_at)


@router.post("/agents", status_code=status.HTTP_201_CREATED)
def enrol(body: AgentCreate, session: WriteSession) -> AgentCreated:
    """Redeem a code: the agent gets a token scoped to the target its profile describes."""
    if not redeem_code(session, body.code):
        raise UnauthenticatedError(
            "the enrolment code is unknown, used or expired; "
            "ask for a new one with `tailor agent code`",
            field="code",
        )
    target = ensure_target(session, body.profile.to_profile())
    agent, token = create_agent(session, target.id, body.name, body.agent_version)
    return AgentCreated(**AgentRead.model_validate(agent).model_dump(), token=token)


@router.get("/agents")
def list_all(
    session: ReadSession, _: User, cursor: Cursor = None, limit: Limit = 50
) -> Page[AgentRead]:
    """Agents, newest first."""
    agents = [AgentRead.model_validate(agent) for agent in list_agents(session, cursor, limit)]
    return Page[AgentRead](items=agents, next_cursor=next_cursor(agents, limit))


@router.delete("/agents/{agent_id}", status_code=status.HTTP_204_NO_CONTENT)
def revoke(agent_id: str, session: WriteSession, _: User) -> None:
    """Revoke an agent's token at once."""
    revoke_agent(session, agent_id)
