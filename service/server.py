"""The HTTP server process: one event loop, a clean end on SIGTERM and SIGINT, exit code 0 for both."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import resource
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.config import Settings
from service.connections import Connections
from service.proxies import Proxies

SHUTDOWN_SECONDS = 15
_M_MMAP_THRESHOLD = -3
_LARGE_BUFFER_BYTES = 256 * 1024
_OTHER_FILES = 256  # the database's, Pub/Sub's and Dataflow's connections, logs


class Server(uvicorn.Server):
    """uvicorn that tells when it is up and that does not die of the signal it was asked to end with."""

    def __init__(self, app: FastAPI, on_started: Callable[[], None]) -> None:
        settings: Settings = app.state.settings
        _allow_files(settings.max_connections + _OTHER_FILES)
        self._connections = Connections(settings, getattr(app.state, "metrics", None))
        super().__init__(
            uvicorn.Config(
                Proxies(app, settings),
                proxy_headers=False,  # uvicorn's own, which FORWARDED_ALLOW_IPS sets
                http=self._connections.protocol(),
                ws="none",
                timeout_keep_alive=settings.keep_alive_seconds,
                log_config=None,  # service.logs has configured the loggers
                access_log=False,
                server_header=False,
                lifespan="on",
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            )
        )
        self._on_started = on_started
        self._app = app
        self._delay_seconds = settings.shutdown_delay_seconds
        self._exits_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # A followed history has no end of its own, and the server would wait for it.
        if desk := getattr(self._app.state, "desk", None):
            desk.streams.close()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        # uvicorn would remember the signal and raise it again after the clean end.
        if self._exits_at is not None:  # asked again
            self.force_exit = self.should_exit = True
            return
        self._exits_at = time.monotonic() + self._delay_seconds
        self.should_exit = not self._delay_seconds or not self.started
        if lifetime := getattr(self._app.state, "lifetime", None):
            lifetime.end()
        # Callers that keep connections are told to make their next one elsewhere.
        self._connections.is_ending = True

    async def on_tick(self, counter: int) -> bool:
        if self._exits_at is not None and time.monotonic() >= self._exits_at:
            self.should_exit = True
        return await super().on_tick(counter)


def listen_on(host: str, port: int) -> socket.socket:
    """Takes a port before anything else is started. Raises OSError where another program has it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def run(app: FastAPI, listener: socket.socket, on_started: Callable[[], None]) -> None:
    """Serves until a signal comes. Raises SystemExit when the application could not start."""
    _return_large_buffers()
    server = Server(app, on_started)
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(server.serve(sockets=[listener]))


def _allow_files(count: int) -> None:
    """Raises the soft limit of open files to `count`, as far as the hard limit lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _return_large_buffers() -> None:
    """Makes glibc give every large buffer back to the system as soon as it is freed.

    By itself it learns from bodies of 5 MB to keep such buffers in the heap, where they fragment: resident
    memory grew by 180 MB under hostile batches. https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BUFFER_BYTES)
