"""What becomes an entry of the audit log: every request of a person that changed something."""

from typing import Any

from sqlalchemy import Result, event
from sqlalchemy.orm import ORMExecuteState, Session
from starlette.requests import Request

from service.audit.models import AuditEntry
from service.audit.repository import append_entry
from service.auth.principal import Principal
from service.db.base import new_id, utc_now
from service.routing import route_template

_CHANGED = "changed"


@event.listens_for(Session, "after_flush")
def _rows_changed(session: Session, _: Any) -> None:
    # an attribute that was set to what it was makes its object dirty, and changes nothing
    if session.new or session.deleted or any(map(session.is_modified, session.dirty)):
        session.info[_CHANGED] = True


@event.listens_for(Session, "do_orm_execute")
def _statement_runs(state: ORMExecuteState) -> Result[Any] | None:
    if state.is_select:
        return None
    result = state.invoke_statement()
    if getattr(result, "rowcount", -1) != 0:  # -1: the driver does not know
        state.session.info[_CHANGED] = True
    return result


def record(session: Session, request: Request) -> None:
    """Tell the audit log what the request has changed, if a key made it and it changed anything.

    What agents do at their work is too much to keep, and is theirs alone. A route names what it
    made in ``session.info["audited"]``; else it is the last parameter of the path.
    """
    principal: Principal | None = getattr(request.state, "principal", None)
    session.flush()
    if principal is None or not session.info.get(_CHANGED):
        return
    parameters = {name: str(value) for name, value in request.path_params.items()}
    made: str | None = session.info.get("audited") or next(reversed(parameters.values()), None)
    append_entry(
        session,
        AuditEntry(
            id=new_id("aud"),
            created_at=utc_now(),
            account=principal.account,
            key_id=principal.id,
            key_name=principal.name,
            session_id=principal.session_id,
            action=f"{request.method} {route_template(request.scope)}",
            parameters=parameters,
            object_id=made,
            request_id=request.state.request_id,
            address=request.client.host if request.client else "",
        ),
    )
