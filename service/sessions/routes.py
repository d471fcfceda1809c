"""Routes of sessions: how a browser signs in with an API key, and out."""

from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request, Response, status

from service.auth.access import CurrentVerifier, Viewer
from service.auth.principal import Principal
from service.dependencies import CurrentSettings, ReadSession, WriteSession
from service.errors import ConflictError, NotFoundError
from service.sessions.csrf import COOKIE, csrf_token
from service.sessions.models import SessionRow
from service.sessions.repository import create_session, delete_session, get_session
from service.sessions.schemas import SessionRead
from service.settings import Settings

router = APIRouter(prefix="/sessions", tags=["sessions"])

_NONE: dict[int | str, dict[str, Any]] = {404: {"description": "A key was sent, and no session."}}


@router.post("", status_code=status.HTTP_201_CREATED)
def sign_in(
    request: Request,
    response: Response,
    session: WriteSession,
    settings: CurrentSettings,
    principal: Viewer,
) -> SessionRead:
    """Open a session with an API key; the answer sets its cookie, which no script can read."""
    if principal.session_id is not None:
        raise ConflictError("this browser is signed in; send an API key to sign in with another")
    lasting = timedelta(hours=settings.session_hours)
    row, token = create_session(session, principal, lasting)
    session.info["audited"] = row.id
    response.set_cookie(
        COOKIE,
        token,
        max_age=int(lasting.total_seconds()),
        httponly=True,
        samesite="strict",
        secure=_is_https(request, settings),
    )
    return _read(row, principal, token, settings)


@router.get("/self", responses=_NONE)
def read_itself(
    request: Request, session: ReadSession, settings: CurrentSettings, principal: Viewer
) -> SessionRead:
    """The session whose cookie was sent, with its CSRF token: what a page asks for when it loads.

    Raises:
        NotFoundError: an API key was sent, and no session.
    """
    row = get_session(session, _own(principal))
    return _read(row, principal, request.cookies[COOKIE], settings)


@router.delete("/self", status_code=status.HTTP_204_NO_CONTENT, responses=_NONE)
def sign_out(
    request: Request,
    response: Response,
    session: WriteSession,
    settings: CurrentSettings,
    principal: Viewer,
    verifier: CurrentVerifier,
) -> None:
    """End the session whose cookie was sent."""
    session_id = _own(principal)
    delete_session(session, session_id)
    session.info["audited"] = session_id
    verifier.forget_after(session)
    response.delete_cookie(
        COOKIE, httponly=True, samesite="strict", secure=_is_https(request, settings)
    )


def _own(principal: Principal) -> str:
    if principal.session_id is None:
        raise NotFoundError("the request came with an API key, not with a session's cookie")
    return principal.session_id


def _is_https(request: Request, settings: Settings) -> bool:
    return settings.is_https or request.url.scheme == "https"


def _read(row: SessionRow, principal: Principal, token: str, settings: Settings) -> SessionRead:
    return SessionRead(
        id=row.id,
        key_id=principal.id,
        name=principal.name,
        account=principal.account,
        scope=principal.scope,
        csrf_token=csrf_token(token),
        idle_minutes=settings.session_idle_minutes,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )
