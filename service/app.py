"""The API. Read `create_app` from the top; every route lives in its feature's `routes.py`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CapacityLimiter
from fastapi import APIRouter, FastAPI, Response, status
from sqlalchemy import text

from service.agents.routes import router as agents
from service.agents.signing import ensure_signer
from service.agents.versions import OLDEST_AGENT
from service.artifacts import ArtifactStore
from service.auth.repository import first_key
from service.auth.routes import router as keys
from service.db.database import Database
from service.db.migrate import migrate
from service.dependencies import CurrentDatabase
from service.latency_models.routes import router as latency_models
from service.machines.routes import router as machines
from service.measure_page.routes import router as measure_page
from service.measurements.routes import router as measurements
from service.middleware import BodyLimit, Gunzip, RequestId
from service.predictions.files import READERS
from service.predictions.routes import router as predictions
from service.problems import install_error_handlers
from service.searches.routes import router as searches
from service.settings import Settings
from service.spaces.routes import router as spaces
from service.targets.routes import router as targets
from service.telemetry import logger
from service.version import VERSION

_log = logger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """The API over the store that `settings` names; migrates it at start-up."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database = Database(settings.resolved_database_url)
        migrate(database)
        app.state.settings = settings
        app.state.database = database
        app.state.file_readers = CapacityLimiter(READERS)
        app.state.artifacts = ArtifactStore(settings.resolved_artifacts_url)
        with database.transaction() as session:
            app.state.signer = ensure_signer(session)
        _announce(database)
        yield
        database.dispose()

    app = FastAPI(
        title="Tailor",
        version=VERSION,
        summary="A device and a latency budget in; a network measured to be under it out.",
        lifespan=lifespan,
    )
    app.add_middleware(Gunzip, max_bytes=settings.max_body_bytes)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(RequestId)
    install_error_handlers(app)

    v1 = APIRouter(prefix="/v1")
    for router in (
        searches,
        targets,
        agents,
        measurements,
        latency_models,
        predictions,
        machines,
        spaces,
        keys,
    ):
        v1.include_router(router)
    app.include_router(v1)
    app.include_router(searches, include_in_schema=False)  # POST /searches, as in the brief
    app.include_router(measure_page)  # /measure/CODE: any browser as a device
    app.include_router(_operations())
    return app


def _operations() -> APIRouter:
    """Health and version, open to everyone."""
    router = APIRouter(tags=["operations"])

    @router.get("/healthz")
    def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @router.get("/readyz")
    def readyz(database: CurrentDatabase, response: Response) -> dict[str, str]:
        """The store answers too; 503 when it does not."""
        try:
            with database.reading() as session:
                session.execute(text("SELECT 1"))
        except Exception:
            _log.exception("the store does not answer")
            response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
            return {"status": "unavailable", "database": "no answer"}
        return {"status": "ok", "database": "ok"}

    @router.get("/version")
    def version() -> dict[str, str]:
        """The version of the service, and the oldest agent that may work with it."""
        return {"tailor": VERSION, "oldest_agent": OLDEST_AGENT}

    return router


def _announce(database: Database) -> None:
    """Say that the store is ready; print the first admin key, once, and never to the log."""
    with database.transaction() as session:
        token = first_key(session)
    if token is not None:
        print(f"TAILOR_API_KEY={token}", flush=True)  # noqa: T201
    print("TAILOR_READY=1", flush=True)  # noqa: T201
