"""Routes of operations: open to everyone, but for the metrics."""

from anyio import to_thread
from fastapi import APIRouter, Depends, Request, Response, status
from fastapi.params import Depends as DependsParam
from prometheus_client import CONTENT_TYPE_LATEST

from service.agents.versions import OLDEST_AGENT
from service.auth.access import RequiredScope
from service.operations.checks import OK, Readiness
from service.operations.metrics import CurrentInstruments
from service.operations.schemas import Health, ReadinessRead, Version
from service.settings import Settings
from service.version import VERSION

router = APIRouter(tags=["operations"])
metrics_router = APIRouter(tags=["operations"])


@router.get("/healthz")
async def healthz() -> Health:
    """The process answers."""
    return Health()


@router.get("/readyz", responses={503: {"model": ReadinessRead, "description": "Not ready."}})
async def readyz(request: Request, response: Response) -> ReadinessRead:
    """Whether requests can be served: database, schema, artifact store, disk space."""
    readiness: Readiness = request.app.state.readiness
    found = await readiness.run()
    if all(text == OK for text in found.values()):
        return ReadinessRead(status="ok", checks=found)
    response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return ReadinessRead(status="unavailable", checks=found)


@metrics_router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format."}},
)
async def metrics(instruments: CurrentInstruments) -> Response:
    """What Prometheus scrapes: with any key, or without where `TAILOR_OPEN_METRICS` is set."""
    text = await to_thread.run_sync(instruments.exposition)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


@router.get("/version")
async def version() -> Version:
    """The version of the service, and the oldest agent that may work with it."""
    return Version(tailor=VERSION, oldest_agent=OLDEST_AGENT)


def metrics_readers(settings: Settings) -> list[DependsParam]:
    """Who may read the metrics: they name targets, so not everyone by default."""
    return [] if settings.open_metrics else [Depends(RequiredScope("viewer"))]
