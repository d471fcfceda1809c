"""`tailor api`: the API's process."""

import gc
import socket
from typing import Annotated

import typer

from service.cli.connection import complaining
from service.settings import Settings


def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
) -> None:
    """Serve the API. The first start on an empty store prints the first admin key, once."""
    import uvicorn

    from service.app import create_app
    from service.db.database import Database
    from service.db.migrate import prepare
    from service.server import Server
    from service.telemetry import configure_logging

    settings = Settings()
    configure_logging(settings.log_level)
    with complaining():
        prepare(Database(settings.resolved_database_url), may_migrate=settings.migrate)
    listener = listen(host or settings.host, settings.port if port is None else port)
    address, bound_port = listener.getsockname()[:2]
    print(f"TAILOR_URL=http://{address}:{bound_port}", flush=True)  # noqa: T201
    config = uvicorn.Config(
        create_app(settings),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    gc.collect()
    gc.freeze()  # what start-up made stays: each batch's dicts would have all of it searched
    Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket whose connections send at once."""
    listener = socket.create_server((host, port))
    # asyncio sets this only where the socket names its protocol, and `create_server` makes
    # one that does not; without it every answer waits 40 ms for an acknowledgement
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
