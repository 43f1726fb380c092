"""The outbox: events that the service answered for while Pub/Sub was away, in the metadata database.

`spool` returns when its events are committed. While one commit is under way the next group collects,
so that many callers share one transaction and one fsync. Claims expire: what a dead process held is
published by another one, under the same event ids.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import datetime, timedelta
from typing import Any, TypeVar

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from service import outbox_store
from service.backpressure import Drain
from service.config import Settings
from service.db import Database
from service.db_failures import told_as_unavailable
from service.errors import DatabaseUnavailableError, OutboxFullError
from service.group_commit import GroupCommit
from service.metrics import Metrics
from service.models import utc_now
from service.outbox_store import Claim, NewRow, OutboxStatus

log = logging.getLogger(__name__)

HOLD_SECONDS = 10.0
# A database that just failed is not asked again at once by each of a thousand callers.
BREATH_SECONDS = 0.25
_COUNT_SHARE = 0.05
_LEAST_COUNT_INTERVAL_SECONDS = 1.0
_NO_ANSWER = "The metadata database did not answer."
_T = TypeVar("_T")
_encode = msgspec.json.Encoder().encode
_decode: Callable[[str], dict[str, str]] = msgspec.json.Decoder(dict[str, str]).decode


class Outbox:
    """The outbox table, for use within one event loop; bounded by the rows and bytes of the settings.

    `rows`, `bytes` and `parked` are what this process believes: exact for what it does itself, and
    brought up to date with other replicas by `count`. `arrived` is set when something was committed.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        clock: Callable[[], datetime] = utc_now,
        metrics: Metrics | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        seconds = (metrics or Metrics()).outbox_commit_seconds
        self._committed, self._failed = seconds.cell("committed"), seconds.cell("failed")
        self._database = database
        self.max_rows = settings.outbox_max_rows
        self.max_bytes = settings.outbox_max_bytes
        self._deadline = settings.outbox_deadline_seconds
        self._clock = clock
        self._monotonic = monotonic
        self._group_commit = GroupCommit(self._commit)
        # SQLite has one writer: whoever finds it taken sleeps in steps of up to 0.1 s.
        self._turn = asyncio.Lock() if database.is_sqlite else nullcontext()
        self._owner = f"{os.getpid():x}-{os.urandom(6).hex()}"
        self._stuck: set[asyncio.Task[Any]] = set()
        self._claims = 0
        self._broken_until = 0.0
        self._broken = _NO_ANSWER
        self._count_at = 0.0
        self._counted: OutboxStatus | None = None
        self.rows = 0
        self.bytes = 0
        self.parked = 0
        self.drain = Drain()
        self.arrived = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Events that are to be published, as far as this process knows."""
        return self.rows - self.parked

    async def spool(self, messages: Sequence[tuple[bytes, Mapping[str, str]]]) -> None:
        """Commits the messages, all or none. Raises OutboxFullError or DatabaseUnavailableError.

        A caller that is cancelled only stops waiting: its messages may be committed.
        """
        rows = [_row(data, attributes) for data, attributes in messages]
        size = sum(row.b for row in rows)
        self._require_room(len(rows), size)
        self._require_breath()
        await self._group_commit.add(rows, size)

    async def spool_from(
        self, choose: Callable[[AsyncConnection], Awaitable[Sequence[tuple[bytes, Mapping[str, str]]]]]
    ) -> None:
        """Commits what `choose` writes and the messages that it returns, all or nothing.

        Raises DatabaseUnavailableError, after which it may be committed nevertheless, and what `choose`
        raises. The caller sees to it that there is room.
        """
        rows: list[NewRow] = []

        async def work() -> None:
            async with self._writing() as connection:
                rows.extend(_row(data, attributes) for data, attributes in await choose(connection))
                await outbox_store.insert_within(connection, rows, self._clock())

        await self._in_time(work())
        self.rows += len(rows)
        self.bytes += sum(row.b for row in rows)
        self.arrived.set()

    def has_room(self, rows: int, size: int) -> bool:
        """Tells whether so many more events, of `size` bytes in all, are within the bounds."""
        try:
            self._require_room(rows, size)
        except OutboxFullError:
            return False
        return True

    def _require_room(self, rows: int, size: int) -> None:
        surplus_rows = self.rows + self._group_commit.rows + rows - self.max_rows
        surplus_bytes = self.bytes + self._group_commit.bytes + size - self.max_bytes
        if surplus_rows <= 0 and surplus_bytes <= 0:
            return
        average = max(1.0, self.bytes / self.rows) if self.rows else 1.0
        raise OutboxFullError(
            "Pub/Sub is away and the outbox is full.",
            retry_after_seconds=self.drain.retry_after_seconds(
                max(surplus_rows, round(surplus_bytes / average))
            ),
        )

    async def _commit(self, rows: list[NewRow], size: int) -> None:
        """Commits the rows of one group. Raises DatabaseUnavailableError."""
        started = time.monotonic()
        try:
            await self._in_time(self._insert(rows))
        except Exception as error:
            self._failed.observe(time.monotonic() - started)
            self._broken_until = self._monotonic() + BREATH_SECONDS
            self._broken = "The metadata database failed."
            if isinstance(error, DatabaseUnavailableError):
                self._broken = error.detail
                raise
            log.exception("events could not be written to the outbox")
            raise DatabaseUnavailableError(self._broken, retry_after_seconds=5) from error
        self._committed.observe(time.monotonic() - started)
        self.rows += len(rows)
        self.bytes += size
        self.arrived.set()

    def _require_breath(self) -> None:
        """Raises DatabaseUnavailableError, with its cause, so shortly after a commit that failed."""
        if self._stuck:
            raise DatabaseUnavailableError(_NO_ANSWER, retry_after_seconds=1)
        if self._monotonic() < self._broken_until:
            raise DatabaseUnavailableError(self._broken, retry_after_seconds=1)

    async def _insert(self, rows: Sequence[NewRow]) -> None:
        async with self._turn:
            await outbox_store.insert(self._database, rows, self._clock())

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        """A write transaction. Raises DatabaseUnavailableError."""
        async with self._turn, self._database.writing() as connection:
            yield connection

    async def _in_time(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What `work` returns, if that is within the deadline. Raises DatabaseUnavailableError.

        Work that is late is left behind, because a thread that waits for a disk cannot be cancelled;
        until it has ended, further work is refused at once.
        """
        if self._stuck:
            work.close()
            raise DatabaseUnavailableError(_NO_ANSWER, retry_after_seconds=1)
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task}, timeout=self._deadline)
        finally:
            if not task.done():
                self._stuck.add(task)
                task.add_done_callback(self._unstuck)
                task.cancel()
        if not task.done():
            log.warning("the database did not answer within %g s", self._deadline)
            raise DatabaseUnavailableError(_NO_ANSWER, retry_after_seconds=5)
        return task.result()

    def _unstuck(self, task: asyncio.Task[Any]) -> None:
        self._stuck.discard(task)
        if not task.cancelled() and task.exception():
            log.debug("a late answer of the database", exc_info=task.exception())

    async def claim(self, count: int, most_bytes: int, hold_seconds: float = HOLD_SECONDS) -> Claim:
        """Takes the oldest events that nobody holds: at most `count`, of about `most_bytes` in all.

        Whoever takes them longer than `hold_seconds` may find them published by somebody else too.
        """
        if self.rows:
            count = max(1, min(count, most_bytes * self.rows // max(self.bytes, 1)))
        self._claims += 1
        token = f"{self._owner}-{self._claims}"
        now = self._clock()
        until = now + timedelta(seconds=hold_seconds)
        return await self._in_time(self._claim(token, count, now, until))

    async def _claim(self, token: str, count: int, now: datetime, until: datetime) -> Claim:
        async with self._writing() as connection:
            return await outbox_store.claim(connection, token, count, now=now, until=until)

    async def finish(self, claim: Claim, published: Sequence[int], parked: dict[int, str]) -> None:
        """Deletes what was published, parks what was refused for good, and gives back the rest."""
        await self._in_time(self._finish(claim, published, parked))
        gone = set(published)
        self.rows = max(0, self.rows - len(gone))
        self.bytes = max(0, self.bytes - sum(row.bytes for row in claim.rows if row.id in gone))
        self.parked += len(parked)
        self.drain.took(len(gone))

    async def _finish(self, claim: Claim, published: Sequence[int], parked: dict[int, str]) -> None:
        async with self._writing() as connection:
            if published:
                await outbox_store.delete_claimed(connection, claim, published)
            if parked:
                await outbox_store.park_claimed(connection, claim, parked, self._clock())
            if len(published) + len(parked) < len(claim.rows):
                await outbox_store.free(connection, claim)

    async def status(self) -> OutboxStatus:
        """Counts the table, and lets `rows` and `bytes` follow."""
        with told_as_unavailable():
            async with asyncio.timeout(self._deadline * 2), self._database.session() as session:
                found = await outbox_store.status(await session.connection())
        self.rows, self.bytes, self.parked = found.rows, found.bytes, found.parked
        self._counted = found
        return found

    async def count(self) -> OutboxStatus:
        """The status as it was lately; a count of the table that takes long is done seldom."""
        started = time.monotonic()
        if self._counted is not None and started < self._count_at:
            return self._counted
        found = await self.status()
        took = time.monotonic() - started
        self._count_at = started + max(_LEAST_COUNT_INTERVAL_SECONDS, took / _COUNT_SHARE)
        return found

    async def require_writable(self) -> None:
        """Raises OutboxFullError or DatabaseUnavailableError where `spool` would."""
        self._require_room(1, 1)
        self._require_breath()
        await self._in_time(self._touch())

    async def _touch(self) -> None:
        async with self._writing() as connection:
            await outbox_store.require_writable(connection, self._clock())

    async def parked_reasons(self) -> list[tuple[str, int, datetime]]:
        """Each reason for which events are parked, how many, and when the newest of them was parked."""
        async with self._database.session() as session:
            return await outbox_store.parked_reasons(await session.connection())

    async def release(self, event_id: str | None = None) -> int:
        """Lets parked events be published again, all or those of one id; returns how many."""
        async with self._writing() as connection:
            return await outbox_store.release(connection, event_id)

    async def events(self, page_size: int = 1000) -> AsyncIterator[dict[str, Any]]:
        """Every event in the outbox, oldest first, as the columns of its row."""
        last = 0
        while True:
            async with self._database.session() as session:
                rows = await outbox_store.page(await session.connection(), last, page_size)
            for row in rows:
                yield row
            if len(rows) < page_size:
                return
            last = rows[-1]["id"]


def message(row: outbox_store.Row) -> tuple[bytes, dict[str, str]]:
    """The message that a row keeps."""
    return row.data, _decode(row.attributes)


def _row(data: bytes, attributes: Mapping[str, str]) -> NewRow:
    encoded = _encode(attributes).decode()
    return NewRow(attributes.get("event_id", ""), data, encoded, len(data) + len(encoded))
