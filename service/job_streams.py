"""The history of a job as Server-Sent Events, followed until the job has ended.

It is read from the database again and again, so any replica may serve any job, and who reconnects
elsewhere with Last-Event-ID goes on where it was. https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service import job_store
from service.config import Settings
from service.db import Database
from service.errors import DatabaseUnavailableError, TooManyStreamsError
from service.job_view import show_event

log = logging.getLogger(__name__)

MEDIA_TYPE = "text/event-stream"
POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 15.0
RETRY_MILLISECONDS = 1000
_PAGE = 200
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Streams:
    """The histories that are followed in this process, at most as many as the settings allow."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._most = settings.max_event_streams
        self._closing = asyncio.Event()
        self.open = 0

    def close(self) -> None:
        """Ends every stream soon; who follows one reconnects elsewhere."""
        self._closing.set()

    def follow(self, job_id: str, after: int, is_admitted: Callable[[], Awaitable[bool]]) -> EventStream:
        """The answer that sends what happened after the entry of sequence `after`.

        It ends when its caller is admitted no more, as one whose key was revoked: who comes back is told why.
        """
        return EventStream(self, self._events(job_id, after, is_admitted))

    def enter(self) -> None:
        """Raises TooManyStreamsError."""
        if self.open >= self._most:
            detail = f"{self._most} histories are being followed here. Ask for JSON, or try again."
            raise TooManyStreamsError(detail, retry_after_seconds=5)
        self.open += 1

    async def _events(
        self, job_id: str, after: int, is_admitted: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[bytes]:
        yield b"retry: %d\n\n" % RETRY_MILLISECONDS
        said_at = time.monotonic()
        while not self._closing.is_set() and await is_admitted():
            try:
                async with self._database.session() as session:
                    # The job first: what was committed with its end is then in the list.
                    entry = await job_store.find(session, job_id)
                    events = await job_store.events(session, job_id, after, _PAGE)
            except DatabaseUnavailableError:
                log.warning("a followed history breaks off: the database is away")
                return
            for event in events:
                after, said_at = event.sequence, time.monotonic()
                yield b"id: %d\ndata: %s\n\n" % (after, show_event(event).model_dump_json().encode())
            if len(events) == _PAGE:
                continue
            if entry is None or entry.job.ended_at:
                return
            if time.monotonic() - said_at >= HEARTBEAT_SECONDS:
                said_at = time.monotonic()
                yield b": alive\n\n"
            await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._closing.wait()
        except TimeoutError:
            pass


class EventStream(StreamingResponse):
    """A streaming answer that counts among those of its `Streams` while it lasts."""

    def __init__(self, streams: Streams, content: AsyncIterator[bytes]) -> None:
        super().__init__(content, headers=_HEADERS, media_type=MEDIA_TYPE)
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._streams.enter()
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.open -= 1
