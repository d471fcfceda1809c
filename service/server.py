"""The HTTP server: uvicorn, told to end what would wait beyond a graceful shutdown."""

import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.telemetry import logger

_log = logger(__name__)


class Server(uvicorn.Server):
    """Ends event streams and long polls first; uvicorn would wait for them to end by themselves."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; who asks a second time is not kept waiting (uvicorn heeds only Ctrl-C then)."""
        if self.should_exit:
            _log.warning("stopping at once: asked a second time")
            self.force_exit = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, let answers finish, and stop."""
        app = self.config.app
        assert isinstance(app, FastAPI)
        app.state.feed.close()
        await super().shutdown(sockets)
