"""Who is asking: FastAPI dependencies that turn a token or a cookie into a principal."""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer

from service.agents.models import Agent
from service.agents.repository import find_agent_by_token
from service.auth.principal import Principal, Scope
from service.auth.verification import Verifier
from service.dependencies import CurrentDatabase, CurrentSettings
from service.errors import ForbiddenError, UnauthenticatedError
from service.sessions.csrf import COOKIE, refuse_forged
from service.telemetry import logger

_bearer = HTTPBearer(
    auto_error=False, description="An API key (tlr_...) or an agent's token (tla_...)."
)
_cookie = APIKeyCookie(
    name=COOKIE,
    auto_error=False,
    description="Of a browser that signed in at /v1/sessions; changes need X-CSRF-Token as well.",
)
_Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
_Cookie = Annotated[str | None, Depends(_cookie)]
_log = logger(__name__)


def _verifier(request: Request) -> Verifier:
    verifier: Verifier = request.app.state.verifier
    return verifier


CurrentVerifier = Annotated[Verifier, Depends(_verifier)]


async def _principal(
    request: Request,
    verifier: CurrentVerifier,
    settings: CurrentSettings,
    credentials: _Credentials,
    cookie: _Cookie,
) -> Principal:
    if credentials is not None:
        principal = await verifier.verify("key", credentials.credentials)
    elif cookie is not None:
        principal = await verifier.verify("session", cookie)
    else:
        raise UnauthenticatedError("send an API key: Authorization: Bearer tlr_...")
    if principal is None:
        raise UnauthenticatedError(
            "the API key is unknown, revoked or expired"
            if credentials is not None
            else "the session has ended; sign in again"
        )
    if credentials is None and cookie is not None:
        refuse_forged(request, cookie, settings)
    request.state.principal = principal
    return principal


class RequiredScope:
    """A dependency that lets through who has this scope or a wider one."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(self, principal: Annotated[Principal, Depends(_principal)]) -> Principal:
        """The principal.

        Raises:
            ForbiddenError: its scope is too narrow.
        """
        if not principal.may(self.scope):
            raise ForbiddenError(
                f"key {principal.name!r} has scope {principal.scope}; this needs {self.scope}"
            )
        return principal


# gives its connection back at once, as the verifier does
def _current_agent(request: Request, credentials: _Credentials, database: CurrentDatabase) -> Agent:
    if credentials is None:
        raise UnauthenticatedError("send the agent's token: Authorization: Bearer tla_...")
    with database.reading() as session:
        agent = find_agent_by_token(session, credentials.credentials)
    if agent is None:
        raise UnauthenticatedError("the agent's token is unknown or revoked; enrol again")
    request.state.agent = agent
    return agent


Viewer = Annotated[Principal, Depends(RequiredScope("viewer"))]
User = Annotated[Principal, Depends(RequiredScope("user"))]
Operator = Annotated[Principal, Depends(RequiredScope("operator"))]
Admin = Annotated[Principal, Depends(RequiredScope("admin"))]
CurrentAgent = Annotated[Agent, Depends(_current_agent)]
