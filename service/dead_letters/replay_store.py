"""Replays in the database: the queries, the claim, and which letters were published already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Table, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import SQLModel, col
from sqlmodel import select as select_rows
from sqlmodel.ext.asyncio.session import AsyncSession

from service.dead_letters.letters import Filters, Letter, Position, advanced
from service.models import Replay, ReplayedLetter

RUNNING, DONE, FAILED, CANCELLED = "RUNNING", "DONE", "FAILED", "CANCELLED"
_KEYS_AT_ONCE = 500
_LEFT = "It ended at most_letters ({most:,}); letters not looked at: {left:,}."

_replays: Table = SQLModel.metadata.tables[str(Replay.__tablename__)]
_letters: Table = SQLModel.metadata.tables[str(ReplayedLetter.__tablename__)]


def filters_of(replay: Replay) -> Filters:
    return msgspec.convert(replay.filters, Filters)


def position_of(replay: Replay) -> Position | None:
    return Position(replay.position_at, replay.position_skip) if replay.position_at else None


def progress(replay: Replay, letters: Sequence[Letter], fresh: int) -> dict[str, object]:
    """The replay's columns after these letters, of which `fresh` were published."""
    at, skip = advanced(position_of(replay), [letter.failed_at for letter in letters]) or (None, 0)
    unreplayable = sum(letter.unreplayable for letter in letters)
    return {
        "position_at": at,
        "position_skip": skip,
        "read": replay.read + len(letters),
        "replayed": replay.replayed + fresh,
        "repeated": replay.repeated + len(letters) - unreplayable - fresh,
        "unreplayable": replay.unreplayable + unreplayable,
        "cause": None,
    }


def why_not_all(replay: Replay) -> str | None:
    """Why a replay that is done has not come to each letter; None where it has."""
    left = (replay.letters or 0) - replay.read
    if left <= 0 or replay.replayed < replay.most_letters:
        return None
    return _LEFT.format(most=replay.most_letters, left=left)


async def find(session: AsyncSession, replay_id: str) -> Replay | None:
    return (await session.exec(select_rows(Replay).where(col(Replay.id) == replay_id))).first()


async def active(session: AsyncSession) -> Replay | None:
    """The replay that is under way; the unique index allows one."""
    return (await session.exec(select_rows(Replay).where(col(Replay.ended_at).is_(None)))).first()


async def page(
    session: AsyncSession, before: tuple[datetime, str] | None, size: int
) -> tuple[list[Replay], bool]:
    """Replays, newest first, and whether there are more."""
    statement = select_rows(Replay).order_by(col(Replay.created_at).desc(), col(Replay.id).desc())
    if before:
        statement = statement.where(tuple_(col(Replay.created_at), col(Replay.id)) < before)
    found = list((await session.exec(statement.limit(size + 1))).all())
    return found[:size], len(found) > size


async def cancel(session: AsyncSession, replay_id: str, at: datetime, by: str) -> bool:
    """Ends an active replay; False where it has ended already. Who works on it finds its claim lost."""
    statement = update(Replay).where(col(Replay.id) == replay_id, col(Replay.ended_at).is_(None))
    done = await session.exec(
        statement.values(state=CANCELLED, ended_at=at, claimed_by=None, cancelled_by=by)
    )
    return bool(done.rowcount)


async def claim(session: AsyncSession, token: str, now: datetime, until: datetime) -> Replay | None:
    """Takes the active replay for `token`, unless somebody holds it."""
    free = or_(col(Replay.claimed_by).is_(None), col(Replay.claimed_until) < now)
    statement = update(Replay).where(col(Replay.ended_at).is_(None), free)
    taken = await session.exec(statement.values(claimed_by=token, claimed_until=until))
    if not taken.rowcount:
        return None
    mine = select_rows(Replay).where(col(Replay.claimed_by) == token, col(Replay.ended_at).is_(None))
    return (await session.exec(mine)).first()


async def hold(connection: AsyncConnection, replay_id: str, token: str, until: datetime) -> int | None:
    """Locks the replay for this transaction and returns how many letters it has read; None as in `change`."""
    held = (_replays.c.id == replay_id, _replays.c.claimed_by == token, _replays.c.ended_at.is_(None))
    statement = update(_replays).where(*held).values(claimed_until=until).returning(_replays.c.read)
    row = (await connection.execute(statement)).first()
    return int(row[0]) if row else None


async def change(connection: AsyncConnection, replay_id: str, token: str, values: Mapping[str, Any]) -> bool:
    """Writes `values` into the replay; False where it has ended or somebody else holds it."""
    held = (_replays.c.id == replay_id, _replays.c.claimed_by == token, _replays.c.ended_at.is_(None))
    return bool((await connection.execute(update(_replays).where(*held).values(**values))).rowcount)


async def replayed(connection: AsyncConnection, keys: Sequence[str], only_by: str | None) -> set[str]:
    """Those of the letters that were replayed, by any replay or `only_by` that one."""
    found: set[str] = set()
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        chosen = _letters.c.letter_key.in_(keys[start : start + _KEYS_AT_ONCE])
        statement = select(_letters.c.letter_key).where(chosen)
        if only_by is not None:
            statement = statement.where(_letters.c.replay_id == only_by)
        found.update((await connection.execute(statement)).scalars())
    return found


async def note(connection: AsyncConnection, keys: Sequence[str], replay_id: str, at: datetime) -> None:
    """Remembers that these letters were replayed."""
    if keys:
        rows = [{"letter_key": key, "replay_id": replay_id, "at": at} for key in keys]
        await connection.execute(insert(_letters), rows)
