"""The table of API keys: made, found, listed, revoked, rotated, and when each was last used."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, bindparam, inspect, make_url
from sqlmodel import col, or_, select, update
from sqlmodel.ext.asyncio.session import AsyncSession

from service.config import Settings
from service.db import Database
from service.db.engines import is_there, reading_connection
from service.db_failures import told_as_unavailable, was_never_made
from service.errors import ConfigError, DatabaseUnavailableError
from service.models import ApiKey, KeyEvent, new_id
from service.models.columns import UtcDateTime

_ACTOR_LENGTH = 128


class KeyNotFoundError(Exception):
    """No key has this id, or none with it can be changed any more."""


class NameTakenError(Exception):
    """Another key that is still good has the name, and the history would not tell them apart."""


async def insert(database: Database, row: ApiKey, now: datetime, by: str) -> None:
    """Adds a key; `by` is who made it, for the history. Raises NameTakenError."""
    async with database.transaction() as session:
        taken = select(ApiKey.id).where(ApiKey.name == row.name, *_good(now)).limit(1)
        if (await session.exec(taken)).first():
            raise NameTakenError(row.name)
        session.add(row)
        _note(session, row.id, now, "created", by)


async def replace(
    database: Database, key_id: str, row: ApiKey, now: datetime, until: datetime, by: str
) -> None:
    """Adds a key in the place of another, which stays good until `until`. Raises KeyNotFoundError."""
    async with database.transaction() as session:
        old = await _good_key(session, key_id, now)
        session.add(row)
        _note(session, row.id, now, "created", by)
        _note(session, old.id, now, "replaced", by)
        if old.expires_at is None or old.expires_at > until:
            old.expires_at = until
            session.add(old)


async def revoke(database: Database, key_id: str, now: datetime, by: str) -> ApiKey:
    """Ends a key at once and returns it; once more changes nothing. Raises KeyNotFoundError."""
    async with database.transaction() as session:
        row = await session.get(ApiKey, key_id)
        if row is None:
            raise KeyNotFoundError(key_id)
        if row.revoked_at is None:
            row.revoked_at = now
            session.add(row)
            _note(session, row.id, now, "revoked", by)
        return row


async def good(database: Database, key_id: str, now: datetime) -> ApiKey:
    """The key, if it is neither expired nor revoked. Raises KeyNotFoundError."""
    async with database.session() as session:
        return await _good_key(session, key_id, now)


async def find(database: Database, key_ids: Collection[str]) -> Mapping[str, ApiKey]:
    """The keys of these ids, whatever has become of them."""
    async with database.session() as session:
        rows = await session.exec(select(ApiKey).where(col(ApiKey.id).in_(key_ids)))
        return {row.id: row for row in rows}


async def everything(database: Database, limit: int = 1000) -> Sequence[ApiKey]:
    """Every key, the newest first."""
    async with database.session() as session:
        newest = select(ApiKey).order_by(col(ApiKey.created_at).desc(), col(ApiKey.id)).limit(limit)
        return (await session.exec(newest)).all()


async def history(database: Database, key_id: str | None = None, limit: int = 1000) -> Sequence[KeyEvent]:
    """What became of a key, or of all, and who did it; the newest first."""
    newest = select(KeyEvent).order_by(col(KeyEvent.at).desc(), col(KeyEvent.id).desc()).limit(limit)
    if key_id is not None:
        newest = newest.where(KeyEvent.key_id == key_id)
    async with database.session() as session:
        return (await session.exec(newest)).all()


async def exist(database: Database) -> bool:
    """Whether there is any key, or ever was one. Raises DatabaseUnavailableError."""
    try:
        async with database.session() as session:
            return (await session.exec(select(ApiKey.id).limit(1))).first() is not None
    except DatabaseUnavailableError as error:
        if was_never_made(error):
            return False
        raise


async def any_good(database: Database, now: datetime) -> bool:
    """Whether there is a key that is neither expired nor revoked. Raises DatabaseUnavailableError."""
    async with database.session() as session:
        return (await session.exec(select(ApiKey.id).where(*_good(now)).limit(1))).first() is not None


async def note_use(database: Database, used: Mapping[str, datetime]) -> None:
    """Writes down when these keys were last used, unless a later use is on record."""
    last, used_at = col(ApiKey.last_used_at), bindparam("used_at", type_=UtcDateTime)
    noted = (
        update(ApiKey)
        .where(col(ApiKey.id) == bindparam("key_id"), or_(last.is_(None), last < used_at))
        .values(last_used_at=used_at)
    )
    # In the order of the ids: another replica that notes the same keys would else wait for us as we for it.
    values = [{"key_id": key_id, "used_at": moment} for key_id, moment in sorted(used.items())]
    async with database.writing() as connection:
        await connection.execute(noted, values)


def exist_now(settings: Settings) -> bool:
    """The same as `exist`, before there is an event loop; False where the table is not there yet.

    Raises ConfigError where the database does not answer.
    """
    url = make_url(settings.async_database_url)
    if url.get_backend_name() == "sqlite" and not is_there(url.database or ""):
        return False
    try:
        with told_as_unavailable(), reading_connection(settings) as connection:
            return inspect(connection).has_table(ApiKey.__tablename__) and _any(connection)
    except DatabaseUnavailableError as error:
        raise ConfigError(f"Whether there are API keys cannot be found out. {error.detail}") from error


def _any(connection: Connection) -> bool:
    return connection.execute(select(ApiKey.id).limit(1)).first() is not None


def _note(session: AsyncSession, key_id: str, now: datetime, kind: str, by: str) -> None:
    session.add(KeyEvent(id=new_id(now), key_id=key_id, at=now, kind=kind, actor=by[:_ACTOR_LENGTH]))


async def _good_key(session: AsyncSession, key_id: str, now: datetime) -> ApiKey:
    row = (await session.exec(select(ApiKey).where(ApiKey.id == key_id, *_good(now)))).first()
    if row is None:
        raise KeyNotFoundError(key_id)
    return row


def _good(now: datetime) -> tuple[ColumnElement[bool], ...]:
    unexpired = or_(col(ApiKey.expires_at).is_(None), col(ApiKey.expires_at) > now)
    return col(ApiKey.revoked_at).is_(None), unexpired
