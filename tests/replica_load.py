"""Callers that send sign-ins to a balancer, and try again under the same event_id until they are answered."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from typing import Self

from tests.balancer import content_length

CALLERS = 8
PAUSE_SECONDS = 0.02  # the replicas are to have time for their jobs too
AGAIN_SECONDS = 0.02
DATE = "2026-01-02T03:04:05Z"
# Answers after which a caller tries again, as the service and every balancer ask for it.
RETRYABLE = frozenset({"429", "502", "503"})


class Load:
    """The callers, from `__aenter__` to `__aexit__`; `promised` is userid to the answered event_id."""

    def __init__(self, port: int, key: str) -> None:
        self.promised: dict[str, str] = {}
        self.statuses: Counter[str] = Counter()
        self._port = port
        self._key = key
        self._names = itertools.count()
        self._over = asyncio.Event()
        self._callers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._callers = [asyncio.create_task(self._call()) for _ in range(CALLERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Lets every caller have its last answer."""
        self._over.set()
        await asyncio.gather(*self._callers)

    async def more(self, count: int, seconds: float = 30.0) -> None:
        """Returns when so many more were answered. Raises TimeoutError."""
        wanted = len(self.promised) + count
        async with asyncio.timeout(seconds):
            while len(self.promised) < wanted:  # noqa: ASYNC110 -- the callers count
                await asyncio.sleep(0.01)

    async def _call(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            while not self._over.is_set():
                number = next(self._names)
                event = {"userid": f"user-{number}", "date": DATE, "event_id": f"event-{number}"}
                while (status := await self._send(reader, writer, event)) in RETRYABLE:  # noqa: ASYNC110
                    await asyncio.sleep(AGAIN_SECONDS)
                assert status == "202", status
                await asyncio.sleep(PAUSE_SECONDS)
        finally:
            writer.close()

    async def _send(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, event: dict[str, str]
    ) -> str:
        body = json.dumps(event).encode()
        writer.write(
            f"POST /events/signin HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {self._key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        answer = await reader.readexactly(content_length(head))
        status = head[9:12].decode()
        self.statuses[status] += 1
        if status == "202":
            self.promised[event["userid"]] = json.loads(answer)["event_id"]
        return status
