"""The statements of the outbox table; but for `insert` each works in a transaction that the caller opened."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Table, bindparam, case, delete, func, select, text, update
from sqlalchemy import insert as insert_into
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import SQLModel

from service.db import Database
from service.models import OutboxEvent, UtcDateTime

_table: Table = SQLModel.metadata.tables[str(OutboxEvent.__tablename__)]
_encode = msgspec.json.Encoder().encode
_IDS_AT_ONCE = 1000
# Rows of one statement on SQLite. Row by row the driver would give up the interpreter, and wait for it
# anew, once for each.
_ROWS_AT_ONCE = 250

# One parameter for all rows: psycopg takes ten times as long to send the rows one by one.
_INSERT_POSTGRESQL = text(
    "INSERT INTO outbox (event_id, data, attributes, bytes, created_at) "
    "SELECT e, decode(d, 'base64'), a, b, :at FROM json_to_recordset(CAST(:rows AS json)) "
    "AS r(e text, d text, a text, b integer)"
).bindparams(bindparam("at", type_=UtcDateTime))
_CLAIM = (
    "UPDATE outbox SET claimed_until = :until, claimed_by = :token, attempts = attempts + 1 WHERE id IN ("
    "SELECT id FROM outbox WHERE parked_at IS NULL AND (claimed_until IS NULL OR claimed_until < :now) "
    "ORDER BY id LIMIT :count{locking}) RETURNING id, data, attributes, bytes, event_id, created_at"
)
_TIMES = (bindparam("until", type_=UtcDateTime), bindparam("now", type_=UtcDateTime))
_CLAIM_SQLITE, _CLAIM_POSTGRESQL = (
    text(_CLAIM.format(locking=locking)).bindparams(*_TIMES).columns(created_at=UtcDateTime)
    for locking in ("", " FOR UPDATE SKIP LOCKED")
)
# More than a page, so that SQLite needs a free one.
_PROBE_BYTES = 8192


class NewRow(msgspec.Struct, array_like=False, gc=False):
    """One event on its way into the table: event_id, data, attributes as JSON, bytes."""

    e: str
    d: bytes
    a: str
    b: int


class Row(NamedTuple):
    """One claimed event."""

    id: int
    data: bytes
    attributes: str
    bytes: int
    event_id: str
    created_at: datetime


@dataclass(frozen=True)
class Claim:
    """Rows that are held under `token`, the oldest first."""

    token: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class OutboxStatus:
    """What the table holds. `rows` and `bytes` include those that are parked."""

    rows: int
    bytes: int
    parked: int
    oldest_at: datetime | None

    @property
    def waiting(self) -> int:
        return self.rows - self.parked


def is_sqlite(connection: AsyncConnection) -> bool:
    return connection.dialect.name == "sqlite"


async def insert(database: Database, rows: Sequence[NewRow], at: datetime) -> None:
    """Adds the rows in their order, in a transaction of their own."""
    if database.is_sqlite:
        await database.write_at_once(_inserts_sqlite(rows, at))
    else:
        await database.write_by_itself(_INSERT_POSTGRESQL, {"at": at, "rows": _encode(rows).decode()})


async def insert_within(connection: AsyncConnection, rows: Sequence[NewRow], at: datetime) -> None:
    """Adds the rows in their order, in the transaction of `connection`."""
    if not rows:
        return
    if is_sqlite(connection):
        for statement, values in _inserts_sqlite(rows, at):
            await connection.exec_driver_sql(statement, tuple(values))
    else:
        await connection.execute(_INSERT_POSTGRESQL, {"at": at, "rows": _encode(rows).decode()})


def _inserts_sqlite(rows: Sequence[NewRow], at: datetime) -> list[tuple[str, list[Any]]]:
    """The statements that insert the rows, each with its values."""
    created_at = at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")  # as UtcDateTime stores it
    pieces = [rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE)]
    return [_insert_sqlite(piece, created_at) for piece in pieces]


def _insert_sqlite(rows: Sequence[NewRow], created_at: str) -> tuple[str, list[Any]]:
    values: list[Any] = [created_at]
    for row in rows:
        values += (row.e, row.d, row.a, row.b)
    return _insert_statement(len(rows)), values


@cache
def _insert_statement(count: int) -> str:
    places = ", ".join(
        f"(?{first}, ?{first + 1}, ?{first + 2}, ?{first + 3}, ?1)" for first in range(2, 4 * count + 2, 4)
    )
    return f"INSERT INTO outbox (event_id, data, attributes, bytes, created_at) VALUES {places}"  # noqa: S608


async def claim(
    connection: AsyncConnection, token: str, count: int, *, now: datetime, until: datetime
) -> Claim:
    """Takes the oldest rows that nobody holds, at most `count`, and holds them until `until`."""
    statement = _CLAIM_SQLITE if is_sqlite(connection) else _CLAIM_POSTGRESQL
    found = await connection.execute(statement, {"token": token, "count": count, "now": now, "until": until})
    # RETURNING promises no order.
    return Claim(token, sorted(Row(*row) for row in found))


async def delete_claimed(connection: AsyncConnection, claimed: Claim, ids: Sequence[int]) -> None:
    """Deletes those rows of the claim, unless somebody else holds them by now."""
    held = _table.c.claimed_by == claimed.token
    if len(ids) == len(claimed.rows):
        between = _table.c.id.between(claimed.rows[0].id, claimed.rows[-1].id)
        await connection.execute(delete(_table).where(between, held))
        return
    for start in range(0, len(ids), _IDS_AT_ONCE):
        chosen = _table.c.id.in_(ids[start : start + _IDS_AT_ONCE])
        await connection.execute(delete(_table).where(chosen, held))


async def park_claimed(
    connection: AsyncConnection, claimed: Claim, reasons: dict[int, str], at: datetime
) -> None:
    """Sets those rows of the claim aside, each with its reason."""
    if not reasons:
        return
    statement = (
        update(_table)
        .where(_table.c.id == bindparam("row"), _table.c.claimed_by == claimed.token)
        .values(parked_at=at, parked_reason=bindparam("reason"), claimed_until=None, claimed_by=None)
    )
    await connection.execute(statement, [{"row": row, "reason": text} for row, text in reasons.items()])


async def free(connection: AsyncConnection, claimed: Claim) -> None:
    """Gives back what is left of the claim."""
    between = _table.c.id.between(claimed.rows[0].id, claimed.rows[-1].id)
    statement = update(_table).where(between, _table.c.claimed_by == claimed.token)
    await connection.execute(statement.values(claimed_until=None, claimed_by=None))


async def status(connection: AsyncConnection) -> OutboxStatus:
    """Counts the whole table."""
    waiting_since = case((_table.c.parked_at.is_(None), _table.c.created_at))
    found = await connection.execute(
        select(
            func.count(),
            func.coalesce(func.sum(_table.c.bytes), 0),
            func.count(_table.c.parked_at),
            func.min(waiting_since, type_=UtcDateTime()),
        ).select_from(_table)
    )
    rows, size, parked, oldest_at = found.one()
    return OutboxStatus(rows, int(size), parked, oldest_at)


async def parked_reasons(connection: AsyncConnection) -> list[tuple[str, int, datetime]]:
    """Each reason for which rows are parked, how many, and when the newest of them was parked."""
    newest = func.max(_table.c.parked_at, type_=UtcDateTime())
    found = await connection.execute(
        select(_table.c.parked_reason, func.count(), newest)
        .where(_table.c.parked_at.is_not(None))
        .group_by(_table.c.parked_reason)
        .order_by(func.count().desc())
    )
    return [(reason, count, at) for reason, count, at in found]


async def release(connection: AsyncConnection, event_id: str | None) -> int:
    """Lets parked rows be published again, all or those of one event; returns how many."""
    statement = update(_table).where(_table.c.parked_at.is_not(None))
    if event_id is not None:
        statement = statement.where(_table.c.event_id == event_id)
    return (await connection.execute(statement.values(parked_at=None, parked_reason=None))).rowcount


async def page(connection: AsyncConnection, after_id: int, count: int) -> list[dict[str, Any]]:
    """The next rows in the order of their ids, parked ones too."""
    found = await connection.execute(
        select(_table).where(_table.c.id > after_id).order_by(_table.c.id).limit(count)
    )
    return [dict(row) for row in found.mappings()]


async def require_writable(connection: AsyncConnection, at: datetime) -> None:
    """Writes an event and takes it back; raises what the database raises when it keeps none.

    The commit of the transaction belongs to it: only then does SQLite write its pages to the disk.
    """
    # An id of its own: PostgreSQL would let the second of two wait for the end of the first.
    probe_id = -1 - secrets.randbelow(2**62)
    row = {"id": probe_id, "event_id": "", "data": bytes(_PROBE_BYTES), "attributes": "{}", "bytes": 0}
    await connection.execute(insert_into(_table).values(**row, created_at=at))
    await connection.execute(delete(_table).where(_table.c.id == probe_id))
