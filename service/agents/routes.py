"""Routes of agents and enrolment."""

from typing import Annotated

from fastapi import APIRouter, Body, Request, status
from sqlalchemy.orm import Session

from service.agents.models import Agent
from service.agents.repository import (
    create_agent,
    create_code,
    get_agent,
    list_agents,
    redeem_code,
    revoke_agent,
    seen,
    space_of_code,
)
from service.agents.schemas import (
    AgentCreate,
    AgentCreated,
    AgentRead,
    EnrolmentCodeCreate,
    EnrolmentCodeCreated,
    Heartbeat,
    HeartbeatRead,
    HeldTask,
    SelfKit,
    SelfModel,
    SelfRead,
    SelfTarget,
    StaleTarget,
)
from service.agents.versions import is_outdated, require_recent
from service.auth.access import CurrentAgent, User, Viewer
from service.auth.principal import Principal
from service.auth.repository import get_key
from service.db.base import utc_now
from service.dependencies import (
    Artifacts,
    CurrentDatabase,
    CurrentSettings,
    CurrentSigner,
    Cursor,
    Limit,
    ReadSession,
    WriteSession,
)
from service.errors import ForbiddenError, UnauthenticatedError
from service.latency_models.repository import active_models
from service.measurements.drift import note_profile, plan_canaries
from service.measurements.kits import build_files, ensure_kit, read_progress
from service.measurements.repository import (
    extend_leases,
    give_back_tasks,
    kits_of,
    tasks_held,
)
from service.schemas import Page, next_cursor
from service.settings import Settings
from service.spaces.catalogue import listed_space
from service.targets.repository import ensure_target, get_target

router = APIRouter(tags=["agents"])


@router.post("/enrolment-codes", status_code=status.HTTP_201_CREATED)
def create_enrolment_code(
    session: WriteSession,
    settings: CurrentSettings,
    user: User,
    body: Annotated[EnrolmentCodeCreate | None, Body()] = None,
) -> EnrolmentCodeCreated:
    """A code that one agent may redeem within some minutes."""
    space = body.search_space if body else None
    if space is not None:
        space = listed_space(space).name
    row, code = create_code(session, user.id, settings.enrolment_minutes, space)
    return EnrolmentCodeCreated(
        code=code,
        expires_at=row.expires_at,
        search_space=space,
        measure_path=f"/measure/{code}",
    )


@router.post(
    "/agents",
    status_code=status.HTTP_201_CREATED,
    responses={
        401: {"description": "The code is unknown, used or expired."},
        426: {"description": "The agent must be updated."},
    },
)
def enrol(
    request: Request,
    body: AgentCreate,
    session: WriteSession,
    database: CurrentDatabase,
    artifacts: Artifacts,
    settings: CurrentSettings,
    signer: CurrentSigner,
) -> AgentCreated:
    """Redeem a code: the agent gets a token scoped to the targets its profiles describe."""
    require_recent(body.agent_version)
    profiles = [profile.to_profile() for profile in body.profiles]
    with database.reading() as reading:
        space = space_of_code(reading, body.code)
    if space is not None:
        for precision, batch in {(p.precision, p.batch) for p in profiles}:
            build_files(database, artifacts, listed_space(space), precision, batch)
    code = redeem_code(session, body.code)
    if code is None:
        raise UnauthenticatedError(
            "the enrolment code is unknown, used or expired; "
            "ask for a new one with `tailor agent code`",
            field="code",
        )
    targets = [ensure_target(session, profile) for profile in profiles]
    # whoever gave the code away answers for what it made
    request.state.principal = who = get_key(session, code.created_by).principal()
    agent, token = create_agent(
        session, who.account, [t.id for t in targets], body.name, body.agent_version
    )
    session.info["audited"] = agent.id
    for target in targets:
        if code.search_space is not None:
            ensure_kit(session, target, listed_space(code.search_space))
    return AgentCreated(
        id=agent.id,
        name=agent.name,
        version=agent.version,
        target_ids=[target.id for target in targets],
        created_at=agent.created_at,
        token=token,
        signing_key=signer.public_key,
        heartbeat_seconds=settings.heartbeat_seconds,
    )


@router.get("/agents/self")
def read_itself(session: ReadSession, agent: CurrentAgent) -> SelfRead:
    """The agent's targets, how far their kits are, and what came of them."""
    return SelfRead(
        id=agent.id,
        name=agent.name,
        draining=agent.draining,
        targets=[_own_target(session, target_id) for target_id in agent.target_ids],
    )


@router.post("/agents/self/heartbeat")
def heartbeat(
    body: Heartbeat,
    session: WriteSession,
    settings: CurrentSettings,
    agent: CurrentAgent,
) -> HeartbeatRead:
    """An agent lives: its leases are extended, and what has changed on the device is noted."""
    seen(
        session,
        agent.id,
        version=body.agent_version,
        activity=body.activity,
        journal_batches=body.journal_batches,
    )
    extend_leases(session, agent.id, settings.task_lease_seconds, body.holds)
    stale = []
    for target_id in agent.target_ids:
        told = body.profiles.get(target_id)
        text = note_profile(session, target_id, told.to_profile()) if told else None
        if text is not None:
            stale.append(StaleTarget(target_id=target_id, text=text))
        elif told is not None:
            plan_canaries(session, target_id, agent, settings.canary_hours)
    return HeartbeatRead(
        draining=agent.draining, stale=stale, heartbeat_seconds=settings.heartbeat_seconds
    )


@router.get("/agents")
def list_all(
    session: ReadSession,
    settings: CurrentSettings,
    _: Viewer,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[AgentRead]:
    """Agents, newest first."""
    agents = [_read(session, agent, settings) for agent in list_agents(session, cursor, limit)]
    return Page[AgentRead](items=agents, next_cursor=next_cursor(agents, limit))


@router.get("/agents/{agent_id}")
def read(agent_id: str, session: ReadSession, settings: CurrentSettings, _: Viewer) -> AgentRead:
    """One agent."""
    return _read(session, get_agent(session, agent_id), settings)


@router.post("/agents/{agent_id}/drain")
def drain(agent_id: str, session: WriteSession, settings: CurrentSettings, user: User) -> AgentRead:
    """Let an agent finish its current task, upload and leave; it is given no more work."""
    agent = _own(session, agent_id, user)
    agent.draining = True
    return _read(session, agent, settings)


@router.post("/agents/{agent_id}/resume")
def resume(
    agent_id: str, session: WriteSession, settings: CurrentSettings, user: User
) -> AgentRead:
    """Let a drained agent work again, once it is started."""
    agent = _own(session, agent_id, user)
    agent.draining = False
    return _read(session, agent, settings)


@router.delete("/agents/{agent_id}", status_code=status.HTTP_204_NO_CONTENT)
def revoke(agent_id: str, session: WriteSession, user: User) -> None:
    """Revoke an agent's token at once; what it was to measure is for others of its targets."""
    _own(session, agent_id, user)
    revoke_agent(session, agent_id)
    give_back_tasks(session, agent_id)


def _own(session: Session, agent_id: str, user: Principal) -> Agent:
    """An agent that the user may send away; that it is there, everybody may know.

    Raises:
        ForbiddenError: it is another account's.
    """
    agent = get_agent(session, agent_id)
    if not user.sees(agent.owner):
        raise ForbiddenError(
            f"agent {agent.name!r} was enrolled by another account; its owner or an operator may"
        )
    return agent


def _read(session: Session, agent: Agent, settings: Settings) -> AgentRead:
    silent_seconds = (utc_now() - agent.last_seen_at).total_seconds()
    n_items = agent.accepted + agent.rejected
    return AgentRead(
        id=agent.id,
        owner=agent.owner,
        name=agent.name,
        version=agent.version,
        target_ids=agent.target_ids,
        online=agent.revoked_at is None and silent_seconds < settings.agent_offline_seconds,
        draining=agent.draining,
        outdated=is_outdated(agent.version),
        activity=agent.activity,
        journal_batches=agent.journal_batches,
        accepted=agent.accepted,
        rejected=agent.rejected,
        flagged=agent.flagged,
        reject_rate=agent.rejected / n_items if n_items else None,
        leased=[HeldTask.model_validate(task) for task in tasks_held(session, agent.id)],
        created_at=agent.created_at,
        last_seen_at=agent.last_seen_at,
        revoked_at=agent.revoked_at,
    )


def _own_target(session: Session, target_id: str) -> SelfTarget:
    kits = []
    for kit in kits_of(session, target_id):
        progress = read_progress(session, kit.id)
        kits.append(SelfKit(id=kit.id, search_space=kit.space, **progress._asdict()))
    models = []
    for row, model in active_models(session, target_id):
        fastest_ms, slowest_ms = model.band_ms
        models.append(
            SelfModel(
                id=row.id,
                search_space=row.space,
                fastest_ms=fastest_ms,
                slowest_ms=slowest_ms,
                margin=model.margin,
                stale=row.stale,
                report=row.report,
            )
        )
    target = get_target(session, target_id)
    return SelfTarget(id=target.id, name=target.name, kits=kits, latency_models=models)
