"""One keep-alive connection: a request, its whole answer, the next request."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import httptools

if TYPE_CHECKING:
    from service.load.crowd import Crowd

MOST_BODY_BYTES = 8_000_000


class Connection(asyncio.Protocol):
    """Tells its crowd of each answer; about 15 µs a request, where httpx takes 1,400."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._cause = "connection lost"
        self.index = -1  # of the request under way; -1 is none
        self.due_at = 0.0

    @property
    def is_busy(self) -> bool:
        return self.index >= 0

    @property
    def is_usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, index: int, due_at: float, request: bytes) -> None:
        """Sends a request that was to be sent at `due_at` (monotonic s)."""
        assert self._transport
        self.index, self.due_at, self._body = index, due_at, b""
        self._transport.write(request)

    def abort(self, cause: str) -> None:
        """Ends the connection at once; a request under way has no answer, because of `cause`."""
        self._cause = cause
        if self._transport:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        self._crowd.connections.add(self)

    def connection_lost(self, _error: Exception | None) -> None:
        self._crowd.connections.discard(self)
        if self.is_busy:
            index, self.index = self.index, -1
            self._crowd.failed(index, self.due_at, self._cause)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort("not HTTP")

    def on_body(self, data: bytes) -> None:
        self._body = self._body + data if self._body else data
        if len(self._body) > MOST_BODY_BYTES:
            self.abort("endless answer")

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 or not self.is_busy:  # 1xx: the answer is still to come
            self._body = b""
            return
        index, self.index = self.index, -1
        keeps = self._parser.should_keep_alive()
        if not keeps and self._transport:
            self._transport.close()
        self._crowd.answered(self, index, time.monotonic(), status, self._body)
