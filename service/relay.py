"""The relay: publishes what lies in the outbox, oldest first, in batches, under the same event ids.

While the breaker is closed it drains with a few workers. Otherwise it is the one that tries: every
`breaker_open_seconds` it publishes one small batch, and the breaker closes when Pub/Sub takes it
within the time for which a caller would wait. A slow answer still gets the events out of the outbox.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from service.breaker import Breaker
from service.config import Settings
from service.errors import DatabaseUnavailableError
from service.metrics import Metrics
from service.models import utc_now
from service.outbox import Outbox, message
from service.outbox_store import Claim, Row
from service.topic import CONNECT_SECONDS, Topic, TopicError, refusal
from service.waking import woken

log = logging.getLogger(__name__)

WORKERS = 4
BATCH_MESSAGES = 1000
PROBE_MESSAGES = 100
# Calls of a hanging Pub/Sub that are waited for while the next probe is sent.
_MOST_PROBES = 12
# How often an outbox that seems empty is looked at, for what other processes left.
POLL_SECONDS = 1.0
_LEAST_PAUSE_SECONDS = 0.02
_END_SECONDS = 2.0
# The first call may take longer than its deadline, because it connects.
_CALL_GRACE_SECONDS = CONNECT_SECONDS + 1.0
# For the two transactions and several calls around the one whose deadline is known.
_HOLD_GRACE_SECONDS = 5.0


@dataclass
class _Outcome:
    """What became of the rows of a claim; what is in neither is given back."""

    published: list[int] = field(default_factory=list)
    parked: dict[int, str] = field(default_factory=dict)
    failed: str = ""  # the status of the call that went wrong


class Relay:
    """Empties the outbox into the topic; for use within one event loop."""

    def __init__(
        self,
        topic: Topic,
        outbox: Outbox,
        breaker: Breaker,
        settings: Settings,
        metrics: Metrics | None = None,
    ) -> None:
        metrics = metrics or Metrics()
        relayed, self._waited = metrics.relayed, metrics.outbox_wait_seconds.cell()
        self._published, self._parked = relayed.cell("published"), relayed.cell("parked")
        self._topic = topic
        self._outbox = outbox
        self._breaker = breaker
        self._patience = min(settings.publish_patience_seconds, settings.publish_deadline_seconds)
        self._deadline = settings.publish_deadline_seconds
        self._batch_messages = min(BATCH_MESSAGES, settings.publish_batch_messages)
        self._batch_bytes = settings.publish_batch_bytes
        self._held: dict[str, Claim] = {}
        self._probes: set[asyncio.Task[None]] = set()
        self._limits: set[asyncio.Timeout] = set()
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Works until it is cancelled, and then gives back what it holds."""
        try:
            while True:
                try:
                    with suppress(DatabaseUnavailableError):  # a large table may take too long to count
                        await self._outbox.count()
                    await self._tick()
                except DatabaseUnavailableError:
                    await asyncio.sleep(POLL_SECONDS)
                except Exception:
                    log.exception("the relay of the outbox broke")
                    await asyncio.sleep(POLL_SECONDS)
        finally:
            await self._end()

    async def flush(self) -> int:
        """Publishes all that nobody else holds; returns how many. Raises TopicError where Pub/Sub fails."""
        published = 0
        try:
            while claim := await self._claim(self._batch_messages, self._deadline):
                outcome = await self._deliver(claim, self._deadline)
                published += len(outcome.published)
                if outcome.failed:
                    raise TopicError(outcome.failed)
            return published
        finally:
            await self._end()

    async def _tick(self) -> None:
        if self._breaker.is_closed:
            self._outbox.arrived.clear()
            self._hurry()
            if self._outbox.waiting:
                await self._drain()
            if self._breaker.is_closed:
                await woken(self._outbox.arrived, POLL_SECONDS)
            return
        pause = self._breaker.seconds_to_probe()
        if pause <= 0 and len(self._probes) < _MOST_PROBES:
            self._outbox.arrived.clear()
            if not await self._probe() and not self._probes:
                await woken(self._outbox.arrived, POLL_SECONDS)
                return
        self._woken.clear()
        await woken(self._woken, max(pause, _LEAST_PAUSE_SECONDS))

    def _hurry(self) -> None:
        """Gives calls from before Pub/Sub was back no more time than others: their events would come last."""
        latest = asyncio.get_running_loop().time() + self._patience
        for limit in self._limits:
            if (limit.when() or latest) > latest:
                limit.reschedule(latest)

    async def _drain(self) -> None:
        """Empties the outbox while Pub/Sub takes what it is given: one worker, and more for more."""
        if await self._work():
            ends = await asyncio.gather(*(self._work_on() for _ in range(WORKERS)), return_exceptions=True)
            for end in ends:
                if end is not None:
                    raise end

    async def _work_on(self) -> None:
        while self._breaker.is_closed and await self._work():
            pass

    async def _work(self) -> bool:
        """Delivers one claim; returns whether there may be more to do at once."""
        claim = await self._claim(self._batch_messages, self._patience)
        if not claim:
            return False
        outcome = await self._deliver(claim, self._patience)
        return not outcome.failed

    async def _probe(self) -> bool:
        """Starts one small delivery that tells whether Pub/Sub is back; False where nothing waits."""
        claim = await self._claim(min(PROBE_MESSAGES, self._batch_messages), self._deadline)
        if not claim:
            return False
        if not self._breaker.probe():  # closed meanwhile, or the publisher was quicker
            await self._finish(claim, _Outcome())
            return True
        task = asyncio.create_task(self._probe_with(claim), name="probe")
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)
        return True

    async def _probe_with(self, claim: Claim) -> None:
        try:
            outcome = await self._deliver(claim, self._deadline)
            if outcome.failed and self._breaker.is_closed:
                self._outbox.arrived.set()  # what it held is free again
        finally:
            self._woken.set()

    async def _claim(self, count: int, deadline_seconds: float) -> Claim | None:
        claim = await self._outbox.claim(count, self._batch_bytes, deadline_seconds + _HOLD_GRACE_SECONDS)
        if not claim.rows:
            return None
        self._held[claim.token] = claim
        return claim

    async def _deliver(self, claim: Claim, deadline_seconds: float) -> _Outcome:
        """Publishes a claim and records what became of it, however often the database has to be asked."""
        outcome = _Outcome()
        rows: list[Row] = []
        size = 0
        for row in claim.rows:
            if rows and size + row.bytes > self._batch_bytes:
                await self._publish(rows, outcome, deadline_seconds)
                rows, size = [], 0
            rows.append(row)
            size += row.bytes
        await self._publish(rows, outcome, deadline_seconds)
        await self._finish(claim, outcome)
        return outcome

    async def _finish(self, claim: Claim, outcome: _Outcome) -> None:
        while True:
            try:
                await self._outbox.finish(claim, outcome.published, outcome.parked)
            except DatabaseUnavailableError:
                # What was published must not be claimed again for as long as the database is away.
                await asyncio.sleep(POLL_SECONDS)
            else:
                del self._held[claim.token]
                return

    async def _publish(self, rows: Sequence[Row], outcome: _Outcome, deadline_seconds: float) -> None:
        """Publishes the rows, and finds those that make Pub/Sub refuse the others."""
        if outcome.failed:
            return
        began = self._breaker.now()
        try:
            await self._call(rows, deadline_seconds)
        except TopicError as error:
            if error.for_good:
                self._breaker.succeeded(began)
                await self._refused(rows, outcome, error, deadline_seconds)
            else:
                outcome.failed = error.status
                self._breaker.failed(error.status, began, hung=error.hung)
            return
        outcome.published += [row.id for row in rows]
        self._published.value += len(rows)
        now = utc_now()
        for row in rows:
            self._waited.observe((now - row.created_at).total_seconds())
        if self._breaker.now() - began > self._patience:
            self._breaker.failed("DEADLINE_EXCEEDED", began, hung=True)
        else:
            self._breaker.succeeded(began)

    async def _call(self, rows: Sequence[Row], deadline_seconds: float) -> None:
        """One Publish call that `_hurry` can cut short. Raises TopicError."""
        try:
            async with asyncio.timeout(deadline_seconds + _CALL_GRACE_SECONDS) as limit:
                self._limits.add(limit)
                try:
                    await self._topic.publish([message(row) for row in rows], deadline_seconds)
                finally:
                    self._limits.discard(limit)
        except TimeoutError as error:
            raise TopicError("DEADLINE_EXCEEDED") from error

    async def _refused(
        self, rows: Sequence[Row], outcome: _Outcome, error: TopicError, deadline_seconds: float
    ) -> None:
        """Parks the one that Pub/Sub refuses for good, and gives the others of its batch another call."""
        if len(rows) > 1:
            middle = len(rows) // 2
            await self._publish(rows[:middle], outcome, deadline_seconds)
            await self._publish(rows[middle:], outcome, deadline_seconds)
            return
        reason = refusal(error.status)
        log.error("Pub/Sub refused an event of the outbox for good, it is parked: %s", reason)
        self._parked.value += 1
        outcome.parked[rows[0].id] = reason

    async def _end(self) -> None:
        """Ends the probes and gives back what is held: else it waits until the claims expire."""
        for task in self._probes:
            task.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        with suppress(DatabaseUnavailableError, TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                for claim in list(self._held.values()):
                    await self._outbox.finish(claim, [], {})
