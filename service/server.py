"""The HTTP server process: one event loop, a clean end on SIGTERM and SIGINT, exit code 0 for both."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

SHUTDOWN_SECONDS = 15


class Server(uvicorn.Server):
    """uvicorn that tells when it is up and that does not die of the signal it was asked to end with."""

    def __init__(self, app: FastAPI, on_started: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,  # service.logs has configured the loggers
                access_log=False,
                server_header=False,
                lifespan="on",
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            )
        )
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        # uvicorn would remember the signal and raise it again after the clean end.
        self.force_exit = self.should_exit
        self.should_exit = True


def listen_on(host: str, port: int) -> socket.socket:
    """Takes a port before anything else is started. Raises OSError where another program has it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def run(app: FastAPI, listener: socket.socket, on_started: Callable[[], None]) -> None:
    """Serves until a signal comes. Raises SystemExit when the application could not start."""
    server = Server(app, on_started)
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(server.serve(sockets=[listener]))
