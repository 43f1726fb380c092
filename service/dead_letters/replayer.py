"""Publishes dead letters again, in the background, one replay at a time among all processes.

A batch of letters, the note that they were replayed and the progress are committed together with their
messages in the outbox; the relay publishes them from there. So a replay that is cut off at any moment
goes on where it was, in this process or in another, and no letter goes to the outbox twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from service.db import Database
from service.dead_letters import replay_store as store
from service.dead_letters.letters import Letter, chosen
from service.dead_letters.room import Room, demand
from service.dead_letters.table import DeadLetterTable
from service.errors import DatabaseUnavailableError, ProblemError
from service.metrics import Metrics, families
from service.models import Replay, utc_now
from service.outbox import Outbox
from service.topic import Message
from service.waking import woken

log = logging.getLogger(__name__)

BATCH_LETTERS = 1000
POLL_SECONDS = 5.0
HOLD_SECONDS = 20.0
MOST_FAILURES = 12  # in a row: about five minutes
LONGEST_PAUSE_SECONDS = 30.0
_FIRST_PAUSE_SECONDS = 0.5
_ROOM_PAUSE_SECONDS = 0.05
_TELL_SECONDS = 5.0
_END_SECONDS = 2.0
_NEVER_FITS = "The next letter ({id}) is larger than the outbox may be: raise SIGNIN_OUTBOX_MAX_BYTES."
_OUTCOMES = ("replayed", "repeated", "unreplayable")


class ClaimLostError(Exception):
    """The replay was cancelled, or another process took it over."""


class _BehindError(Exception):
    """The database has come further than this process knows."""


class Replayer:
    """Works on the active replay; for use within one event loop."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        table: DeadLetterTable,
        clock: Callable[[], datetime] = utc_now,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics or Metrics()
        self._metrics.tells(families.REPLAYS, lambda: int(self._replay is not None))
        self._metrics.tells(families.REPLAY_LEFT, self._left)
        self._replay: Replay | None = None
        self._database = database
        self._outbox, self._room = outbox, Room(outbox)
        self._table = table
        self._clock = clock
        self._token = f"{os.getpid():x}-{os.urandom(6).hex()}"
        self._woken = asyncio.Event()
        self._held: str | None = None
        self._dry_keys: set[str] = set()  # of the letters that a dry run has counted
        self._unsure_keys: list[str] = []  # of those whose commit was not answered

    def wake(self) -> None:
        """Makes the next look come at once; within the event loop of `run` only."""
        self._woken.set()

    async def run(self) -> None:
        """Works until it is cancelled, and then gives back what it holds."""
        try:
            while True:
                try:
                    await self.tick()
                except DatabaseUnavailableError:
                    log.debug("the database is away: no replay is looked for")
                except Exception:
                    log.exception("a replay broke")
                await woken(self._woken, POLL_SECONDS)
                self._woken.clear()
        finally:
            await self._give_back()

    async def tick(self) -> None:
        """Takes the active replay, if nobody holds it, and works on it to its end."""
        async with self._database.session() as session:
            if await store.active(session) is None:
                return
        now = self._clock()
        async with self._database.transaction() as session:
            replay = await store.claim(session, self._token, now, self._until(now))
        if replay is None:
            return
        self._held, self._replay = replay.id, replay
        heart = asyncio.create_task(self._hold_on(replay.id), name="replay's claim")
        try:
            await self._finish(replay)
        except ClaimLostError:
            log.info("replay %s is no longer ours", replay.id)
        except DatabaseUnavailableError:
            raise
        except Exception as error:
            log.exception("replay %s broke", replay.id)  # it would break again, at the same letter
            await self._end(replay, store.FAILED, f"The service failed ({type(error).__name__}).")
        finally:
            heart.cancel()
            await asyncio.wait([heart])
            self._dry_keys.clear()
            self._unsure_keys = []
            self._replay = None
            await self._give_back()

    async def _finish(self, replay: Replay) -> None:
        """Works on the replay until it ends, however often BigQuery or the database has to be asked."""
        await self._begin(replay)
        failures = 0
        while True:
            try:
                if await self._step(replay):
                    return
                failures = 0
            except DatabaseUnavailableError:
                await asyncio.sleep(POLL_SECONDS)
            except ProblemError as error:
                failures += 1
                log.warning("replay %s: %s", replay.id, error.detail)
                if not error.retryable or failures > MOST_FAILURES:
                    await self._end(replay, store.FAILED, error.detail)
                    return
                await asyncio.sleep(min(_FIRST_PAUSE_SECONDS * 2**failures, LONGEST_PAUSE_SECONDS))

    async def _hold_on(self, replay_id: str) -> None:
        """Renews the claim while BigQuery or the outbox is waited for; ends when the claim is lost."""
        held = True
        while held:
            await asyncio.sleep(HOLD_SECONDS / 4)
            with suppress(DatabaseUnavailableError):
                async with self._database.writing() as connection:
                    held = await store.change(
                        connection, replay_id, self._token, {"claimed_until": self._until(self._clock())}
                    )

    async def _begin(self, replay: Replay) -> None:
        values: dict[str, object] = {"started_at": replay.started_at or self._clock()}
        if replay.dry_run:  # what it had seen went with the process that had seen it
            values |= {"position_at": None, "position_skip": 0, "read": 0, "replayed": 0, "repeated": 0}
            values |= {"unreplayable": 0}
        await self._change(replay, values)

    async def _step(self, replay: Replay) -> bool:
        """Deals with the next letters; returns whether the replay has ended."""
        if replay.letters is None:
            counts = await self._table.counts(store.filters_of(replay))
            await self._change(replay, {"letters": sum(each.letters for each in counts)})
        letters: list[Letter] = []
        if replay.replayed < replay.most_letters:
            most = min(BATCH_LETTERS, self._outbox.max_rows)
            letters, _ = await self._table.read(store.filters_of(replay), store.position_of(replay), most)
        if not letters:
            await self._end(replay, store.DONE, store.why_not_all(replay))
            return True
        if not replay.dry_run:
            sizes = await self._demands(replay, letters)
            if not self._room.can_ever_hold(sizes[0]):
                name = letters[0].message_id or letters[0].event_id
                await self._end(replay, store.FAILED, _NEVER_FITS.format(id=name))
                return True
            letters = letters[: await self._await_room(replay, sizes)]
        await self._commit(replay, letters)
        return False

    async def _commit(self, replay: Replay, letters: Sequence[Letter]) -> None:
        """Sends letters to the outbox, once each and no more than it may, and notes that with them."""
        keys = [None if letter.unreplayable else letter.key for letter in letters]
        values: dict[str, object] = {}

        async def choose(connection: AsyncConnection) -> list[Message]:
            now = self._clock()
            # First the lock on the replay's row: nobody else notes letters before this is committed.
            count = await store.hold(connection, replay.id, self._token, self._until(now))
            if count is None:
                raise ClaimLostError
            if count != replay.read:
                raise _BehindError
            asked = {key for key in keys if key is not None}
            known = await store.replayed(connection, list(asked), replay.id if replay.again else None)
            known |= asked & self._dry_keys
            read, fresh = chosen(letters, keys, known, replay.most_letters - replay.replayed)
            values.update(store.progress(replay, read, len(fresh)))
            await store.change(connection, replay.id, self._token, values)
            if replay.dry_run:
                self._unsure_keys = list(fresh)
                return []
            await store.note(connection, list(fresh), replay.id, now)
            return [letter.message(replay.id) for letter in fresh.values()]

        try:
            await self._outbox.spool_from(choose)
        except _BehindError:  # an earlier try was committed although it seemed to fail
            await self._reload(replay)
        else:
            self._count(replay, values)
            _take_over(replay, values)
        self._dry_keys.update(self._unsure_keys)
        self._unsure_keys = []

    async def _reload(self, replay: Replay) -> None:
        """Lets `replay` say what the database says. Raises ClaimLostError where it is not ours any more."""
        async with self._database.session() as session:
            found = await store.find(session, replay.id)
        if found is None or found.claimed_by != self._token:
            raise ClaimLostError
        self._count(replay, found.model_dump())
        _take_over(replay, found.model_dump())

    async def _demands(self, replay: Replay, letters: Sequence[Letter]) -> list[int]:
        """What each letter takes of the outbox, in bytes; 0 for those that are left out."""
        keys = [None if letter.unreplayable else letter.key for letter in letters]
        async with self._database.session() as session:
            asked = [key for key in keys if key is not None]
            by = replay.id if replay.again else None
            known = await store.replayed(await session.connection(), asked, by)
        return [
            0 if key is None or key in known else demand(letter)
            for letter, key in zip(letters, keys, strict=True)
        ]

    async def _await_room(self, replay: Replay, sizes: Sequence[int]) -> int:
        """How many letters have room in the outbox, from the first on; that takes long without Pub/Sub."""
        waited = 0.0
        while not (fitting := self._room.fitting(sizes)):
            await asyncio.sleep(_ROOM_PAUSE_SECONDS)
            await self._outbox.count()
            waited += _ROOM_PAUSE_SECONDS
            if waited >= _TELL_SECONDS:
                await self._change(replay, {"cause": "It waits for room in the outbox."})
                waited = 0.0
        return fitting

    async def _end(self, replay: Replay, state: str, cause: str | None) -> None:
        at = self._clock()
        while True:
            try:
                await self._change(replay, {"state": state, "cause": cause, "ended_at": at})
            except DatabaseUnavailableError:
                await asyncio.sleep(POLL_SECONDS)
            else:
                break
        log.info(
            "replay %s ended as %s: %d letters replayed, %d repeated, %d unreplayable",
            *(replay.id, state, replay.replayed, replay.repeated, replay.unreplayable),
        )

    async def _change(self, replay: Replay, values: dict[str, object]) -> None:
        """Writes values down, and holds the replay for longer. Raises ClaimLostError."""
        values = values | {"claimed_until": self._until(self._clock())}
        async with self._database.writing() as connection:
            if not await store.change(connection, replay.id, self._token, values):
                raise ClaimLostError
        _take_over(replay, values)

    async def _give_back(self) -> None:
        """Lets another process go on at once; else it waits until the claim expires."""
        held, self._held = self._held, None
        if held is None:
            return
        with suppress(DatabaseUnavailableError, TimeoutError):
            async with asyncio.timeout(_END_SECONDS), self._database.writing() as connection:
                await store.change(connection, held, self._token, {"claimed_by": None, "claimed_until": None})

    def _count(self, replay: Replay, after: Mapping[str, Any]) -> None:
        for outcome in () if replay.dry_run else _OUTCOMES:
            self._metrics.replayed.add(outcome, count=after[outcome] - getattr(replay, outcome))

    def _left(self) -> float | None:
        replay = self._replay
        return None if replay is None or replay.letters is None else max(0, replay.letters - replay.read)

    def _until(self, now: datetime) -> datetime:
        return now + timedelta(seconds=HOLD_SECONDS)


def _take_over(replay: Replay, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        setattr(replay, name, value)
