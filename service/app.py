"""The API. Read `create_app` from the top; every route lives in its feature's `routes.py`."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

from anyio import CapacityLimiter
from fastapi import APIRouter, FastAPI

from service.agents.routes import router as agents
from service.agents.signing import ensure_signer
from service.artifacts import ArtifactStore
from service.audit.routes import router as audit
from service.auth.limits import Limits
from service.auth.repository import first_key
from service.auth.routes import router as keys
from service.auth.verification import Verifier
from service.datasets.routes import router as datasets
from service.db.database import Database
from service.db.migrate import prepare
from service.housekeeping import housekeeping
from service.latency_models.routes import router as latency_models
from service.machines.routes import router as machines
from service.measure_page.routes import router as measure_page
from service.measurements.routes import router as measurements
from service.middleware import BodyLimit, Gunzip, RateLimit, RequestId, SecurityHeaders
from service.openapi import complete_openapi
from service.operations.checks import Readiness, checks
from service.operations.metrics import Instruments
from service.operations.requests import RequestLog
from service.operations.routes import metrics_readers, metrics_router
from service.operations.routes import router as operations
from service.predictions.files import READERS
from service.predictions.routes import router as predictions
from service.problems import install_error_handlers
from service.searches.event_routes import router as events
from service.searches.feed import SearchFeed
from service.searches.result_routes import router as results
from service.searches.routes import router as searches
from service.sessions.routes import router as sessions
from service.settings import Settings
from service.spaces.routes import router as spaces
from service.targets.routes import router as targets
from service.version import VERSION
from service.webhooks.dispatcher import Dispatcher
from service.webhooks.guard import Guard
from service.webhooks.routes import router as webhooks
from service.workers.routes import router as workers


def create_app(settings: Settings) -> FastAPI:
    """The API over the store that `settings` names; migrates it at start-up if it may."""
    instruments = Instruments()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database = Database(settings.resolved_database_url)
        prepare(database, may_migrate=settings.migrate)
        app.state.settings = settings
        app.state.database = database
        app.state.file_readers = CapacityLimiter(READERS)
        app.state.instruments = instruments
        app.state.artifacts = ArtifactStore(settings.resolved_artifacts_url)
        app.state.readiness = Readiness(checks(settings, database, app.state.artifacts))
        with database.transaction() as session:
            app.state.signer = ensure_signer(session)
        app.state.verifier = Verifier(database, timedelta(minutes=settings.session_idle_minutes))
        app.state.feed = SearchFeed(database, settings.event_poll_seconds, settings.event_streams)
        instruments.watch(settings, database, app.state.feed)
        app.state.webhook_guard = Guard(settings.webhook_allowed_networks)
        _announce(database)
        async with (
            _meanwhile(app.state.verifier.note_uses()),
            _meanwhile(app.state.feed.run()),
            _meanwhile(Dispatcher(settings, database, app.state.webhook_guard).run()),
        ):
            with housekeeping(settings, database):
                yield
        database.dispose()

    app = FastAPI(
        title="Tailor",
        version=VERSION,
        summary="A device and a latency budget in; a network measured to be under it out.",
        lifespan=lifespan,
    )
    app.add_middleware(Gunzip, max_bytes=settings.max_body_bytes)
    app.add_middleware(
        BodyLimit,
        max_bytes=settings.max_body_bytes,
        max_small_bytes=settings.max_small_body_bytes,
    )
    app.add_middleware(RateLimit, limits=Limits(settings))
    app.add_middleware(SecurityHeaders, https=settings.is_https, hosts=settings.allowed_hosts)
    app.add_middleware(RequestLog, instruments=instruments)
    app.add_middleware(RequestId)
    install_error_handlers(app)

    v1 = APIRouter(prefix="/v1")
    for router in (
        searches,
        results,
        events,
        targets,
        agents,
        measurements,
        latency_models,
        predictions,
        machines,
        workers,
        datasets,
        spaces,
        keys,
        webhooks,
        sessions,
        audit,
    ):
        v1.include_router(router)
    app.include_router(v1)
    for router in (searches, results, events):  # POST /searches, as in the brief
        app.include_router(router, include_in_schema=False)
    app.include_router(measure_page)  # /measure/CODE: any browser as a device
    app.include_router(operations)
    app.include_router(metrics_router, dependencies=metrics_readers(settings))
    complete_openapi(app)
    return app


@asynccontextmanager
async def _meanwhile(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do `work` beside the block, and end it with the block."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _announce(database: Database) -> None:
    """Say that the store is ready; print the first admin key, once, and never to the log."""
    with database.transaction() as session:
        token = first_key(session)
    if token is not None:
        print(f"TAILOR_API_KEY={token}", flush=True)  # noqa: T201
    print("TAILOR_READY=1", flush=True)  # noqa: T201
