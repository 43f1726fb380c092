"""An HTTP balancer before several replicas, as clouds have it; small, and honest about what it could not do.

It sends to the replicas whose /readyz says 200, one request for each connection, in turns. Where a connection
is refused it takes the next replica, for nothing was sent yet. Where one breaks later it answers 502: whether
the request took effect nobody knows, and to try again is the caller's decision.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

POLL_SECONDS = 0.1
PROBE_SECONDS = 3.0
ANSWER_SECONDS = 30.0


@dataclass
class Backend:
    """One replica as the balancer sees it."""

    port: int
    ready: bool = False
    leaving: bool = False
    under_way: int = 0
    statuses: Counter[int] = field(default_factory=Counter)


class BrokenOffError(Exception):
    """The replica broke off before its whole answer was there."""


class Balancer:
    """Listens on loopback from `__aenter__` to `__aexit__`.

    `broken` counts by port what was answered with 502, `empty` what was with 503 for want of a replica.
    """

    def __init__(self) -> None:
        self.port = 0
        self.broken: Counter[int] = Counter()
        self.empty = 0
        self.retried = 0
        self._backends: dict[int, Backend] = {}
        self._probes: dict[int, asyncio.Task[None]] = {}
        self._turn = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for probe in self._probes.values():
            probe.cancel()
        await asyncio.gather(*self._probes.values(), return_exceptions=True)

    async def add(self, port: int) -> None:
        """Takes a replica in; returns when it is ready."""
        self._backends[port] = backend = Backend(port)
        self._probes[port] = asyncio.create_task(self._watch(backend))
        async with asyncio.timeout(ANSWER_SECONDS):
            while not backend.ready:  # noqa: ASYNC110 -- another task finds out
                await asyncio.sleep(POLL_SECONDS)

    async def deregister(self, port: int) -> None:
        """Sends nothing more to a replica; returns when it has answered all that it was sent."""
        backend = self._backends[port]
        backend.leaving = True
        async with asyncio.timeout(ANSWER_SECONDS):
            while backend.under_way:  # noqa: ASYNC110 -- other tasks finish it
                await asyncio.sleep(0.01)

    async def remove(self, port: int) -> None:
        probe = self._probes.pop(port)
        probe.cancel()
        await asyncio.wait([probe])
        del self._backends[port]

    def statuses(self) -> Counter[int]:
        return sum((backend.statuses for backend in self._backends.values()), Counter())

    async def _watch(self, backend: Backend) -> None:
        request = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        while True:
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    backend.ready = status(await exchange(backend.port, request)) == 200
            except (OSError, BrokenOffError, TimeoutError):
                backend.ready = False
            await asyncio.sleep(POLL_SECONDS)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await read_request(reader):
                writer.write(await self._forward(request))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the caller left
        finally:
            writer.close()

    async def _forward(self, request: bytes) -> bytes:
        for backend in self._in_turn():
            backend.under_way += 1
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    answer = await exchange(backend.port, request)
            except ConnectionRefusedError:
                backend.ready = False
                self.retried += 1
                continue
            except (OSError, BrokenOffError, TimeoutError):
                self.broken[backend.port] += 1
                return b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n"
            finally:
                backend.under_way -= 1
            backend.statuses[status(answer)] += 1
            return answer
        self.empty += 1
        return b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"

    def _in_turn(self) -> list[Backend]:
        self._turn += 1
        able = [backend for backend in self._backends.values() if backend.ready and not backend.leaving]
        first = self._turn % len(able) if able else 0
        return able[first:] + able[:first]


async def exchange(port: int, request: bytes) -> bytes:
    """The answer to a request on its own connection. Raises ConnectionRefusedError, BrokenOffError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        answer = await reader.read()
    except OSError as error:
        raise BrokenOffError from error
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator or len(body) < content_length(head):
        raise BrokenOffError
    return head.replace(b"\r\nconnection: close", b"") + separator + body


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """A caller's next request, changed so that the replica closes its connection; empty at the end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return b""
    body = await reader.readexactly(content_length(head))
    return head[:-2] + b"connection: close\r\n\r\n" + body


def content_length(head: bytes) -> int:
    value = head.lower().partition(b"content-length:")[2].split(b"\r", 1)[0]
    return int(value or 0)


def status(answer: bytes) -> int:
    return int(answer[9:12])
