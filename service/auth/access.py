"""Who is asking: FastAPI dependencies that turn a bearer token into a principal."""

from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.agents.models import Agent
from service.agents.repository import find_agent_by_token
from service.auth.models import ApiKey
from service.auth.repository import find_key
from service.dependencies import CurrentDatabase
from service.errors import ForbiddenError, UnauthenticatedError

_bearer = HTTPBearer(
    auto_error=False, description="An API key (tlr_...) or an agent's token (tla_...)."
)
_Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


# each look-up gives its connection back at once: a request that kept it while it waits, for
# work or for a second connection, would starve the others of the pool


def _current_key(credentials: _Credentials, database: CurrentDatabase) -> ApiKey:
    if credentials is None:
        raise UnauthenticatedError("send an API key: Authorization: Bearer tlr_...")
    with database.reading() as session:
        key = find_key(session, credentials.credentials)
    if key is None:
        raise UnauthenticatedError("the API key is unknown or revoked")
    return key


def _current_admin(key: Annotated[ApiKey, Depends(_current_key)]) -> ApiKey:
    if key.scope != "admin":
        raise ForbiddenError(f"key {key.name!r} has scope {key.scope}; this needs admin")
    return key


def _current_agent(credentials: _Credentials, database: CurrentDatabase) -> Agent:
    if credentials is None:
        raise UnauthenticatedError("send the agent's token: Authorization: Bearer tla_...")
    with database.reading() as session:
        agent = find_agent_by_token(session, credentials.credentials)
    if agent is None:
        raise UnauthenticatedError("the agent's token is unknown or revoked; enrol again")
    return agent


User = Annotated[ApiKey, Depends(_current_key)]
Admin = Annotated[ApiKey, Depends(_current_admin)]
CurrentAgent = Annotated[Agent, Depends(_current_agent)]
