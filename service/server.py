"""The HTTP server process: one event loop, a clean end on SIGTERM and SIGINT, exit code 0 for both."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import httptools
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SHUTDOWN_SECONDS = 15
HEAD_SECONDS = 10.0
MAX_HEAD_BYTES = 64 * 1024


class Protocol(HttpToolsProtocol):
    """uvicorn's quick protocol, which by itself reads a request's head for ever and without a limit.

    A request that offers an upgrade, as Java's client does with HTTP/2, goes on with h11: httptools
    would take its body for the new protocol's and leave the request without one.
    """

    _in_head = False
    _head_bytes = 0
    _alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self._alarm = self.loop.call_later(HEAD_SECONDS, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_alarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_with_h11(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse("Invalid HTTP request received.")
        else:
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    self._refuse("The head of the request is too large.")
                elif self._alarm is None:
                    self._alarm = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._unset_alarm()
        super().on_headers_complete()

    def _should_upgrade(self) -> bool:
        return True  # asked for only where the request offers one: makes uvicorn leave it to us

    def _go_on_with_h11(self, rest: bytes) -> None:
        if self.cycle and not self.cycle.response_complete:
            self._refuse("An upgrade cannot be offered before the last request is answered.")
            return
        head = [self.scope["method"].encode(), b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in self.headers:
            head += [name, b": ", value, b"\r\n"]
        self._unset_alarm()
        self.connections.discard(self)
        following = H11Protocol(self.config, self.server_state, self.app_state)
        following.connection_made(self.transport)
        self.transport.set_protocol(following)
        following.data_received(b"".join([*head, b"\r\n", rest]))

    def _refuse(self, message: str) -> None:
        self.logger.warning(message)
        self.send_400_response(message)

    def _unset_alarm(self) -> None:
        if self._alarm:
            self._alarm.cancel()
            self._alarm = None


class Server(uvicorn.Server):
    """uvicorn that tells when it is up and that does not die of the signal it was asked to end with."""

    def __init__(self, app: FastAPI, on_started: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,  # service.logs has configured the loggers
                access_log=False,
                server_header=False,
                http=Protocol,
                ws="none",
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
