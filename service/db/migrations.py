"""Changing the schema: by one process at a time, and never longer in the way of the others than a moment."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import sqlalchemy.exc
from sqlalchemy import Connection, Engine, event, make_url, text

from service.config import Settings
from service.db import schema
from service.db.engines import blocking_engine, is_sqlite, new_file
from service.db_failures import told_as_unavailable
from service.errors import ConfigError, DatabaseUnavailableError

log = logging.getLogger(__name__)

WAIT_SECONDS = 120.0
# While a change waits for a table's lock, all that comes to the table waits behind it.
LOCK_TIMEOUT_SECONDS = 2.0
# What a change may take that holds such a lock. Outside of transactions (CONCURRENTLY) neither holds.
CHANGE_TIMEOUT_SECONDS = 60.0
_POLL_SECONDS = 0.1
_PAUSE_SECONDS = 1.0
_LOCK = 0x5167_6E49_6E00  # any number, the same in every replica
_LOCK_NOT_AVAILABLE = "55P03"


class SchemaBusyError(DatabaseUnavailableError):
    """Others were in the way of a migration for longer than it waits."""


@dataclass
class _Deadline:
    """The moment until which is waited, counted from the start."""

    seconds: float
    _started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self._started + self.seconds - time.monotonic()


@contextmanager
def migration_connection(settings: Settings, wait_seconds: float = WAIT_SECONDS) -> Iterator[Connection]:
    """A connection that only one migrating process has at a time. Raises SchemaBusyError.

    On PostgreSQL an advisory lock of the session sees to that, and each migration is a transaction; on SQLite
    the lock of the file, and the whole block is one transaction, committed at its end.
    """
    url = make_url(settings.async_database_url)
    # Without foreign keys, because later migrations rebuild tables.
    engine = blocking_engine(
        url, statement_timeout_seconds=None, busy_seconds=wait_seconds, foreign_keys=False
    )
    try:
        with told_as_unavailable():
            if is_sqlite(url):
                with _begun(engine, wait_seconds) as connection:
                    yield connection
                return
            event.listen(engine, "begin", _bound)
            with engine.connect() as connection:
                _take_lock(connection, _Deadline(wait_seconds))
                yield connection
                connection.commit()
    finally:
        engine.dispose()  # and with its session goes the lock


def migrate(settings: Settings, revision: str = "head", *, wait_seconds: float = WAIT_SECONDS) -> list[str]:
    """Brings the schema up to `revision` and returns the revisions that were applied now.

    A schema of a later release stays as it is. A migration is applied whole or not at all; one that finds a
    table in use for too long lets go and tries again. Blocks, so an event loop runs it in a thread. Raises
    SchemaBusyError after `wait_seconds`, and ConfigError where a later release left a schema that
    this program cannot use.
    """
    from alembic import command

    deadline = _Deadline(wait_seconds)
    applied: list[str] = []
    made = new_file(settings)
    with migration_connection(settings, wait_seconds) as connection:
        fit = schema.look(connection)
        if fit.kind == "too_new":
            raise ConfigError(fit.sentence)
        if fit.kind == "newer":
            log.warning("%s", fit.sentence)
            return applied
        if connection.dialect.name != "sqlite":
            connection.commit()  # alembic is to begin the transactions
        config = schema.alembic_config()
        config.attributes.update(connection=connection, applied=applied)
        while not _done(lambda: command.upgrade(config, revision), connection, deadline):
            time.sleep(min(_PAUSE_SECONDS, max(0.0, deadline.left)))
    if made:  # at a path with a typo, too
        log.info("there was no database at %s: it is a new one", made)
    if applied:
        log.info("the schema was changed: %s", ", ".join(applied))
    return applied


def unmigrate(settings: Settings, revision: str = "base") -> None:
    """Takes the schema down to `revision`, and the data with it."""
    from alembic import command

    with migration_connection(settings) as connection:
        config = schema.alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


@contextmanager
def _begun(engine: Engine, wait_seconds: float) -> Iterator[Connection]:
    """The one transaction on SQLite. Raises SchemaBusyError where another writes for too long."""
    with ExitStack() as stack:
        try:
            connection = stack.enter_context(engine.execution_options(writes=True).begin())
        except sqlalchemy.exc.OperationalError as error:
            if getattr(error.orig, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            raise _busy("Another process has been writing into the database", wait_seconds) from error
        yield connection


def _busy(who: str, seconds: float) -> SchemaBusyError:
    return SchemaBusyError(f"{who} for {seconds:g} s.", retry_after_seconds=5)


def _take_lock(connection: Connection, deadline: _Deadline) -> None:
    """Asks again and again for the lock. Raises SchemaBusyError after the deadline.

    One that waits in the database would hold a snapshot, and an index that the holder builds CONCURRENTLY
    would wait for that snapshot to end: both would wait for each other.
    """
    said = False
    while True:
        taken = connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK}).scalar_one()
        connection.commit()
        if taken:
            return
        if deadline.left <= 0:
            raise _busy("Another process has been changing the schema", deadline.seconds)
        if not said:
            log.info("another process is changing the schema; waiting for it")
            said = True
        time.sleep(_POLL_SECONDS)


def _bound(connection: Connection) -> None:
    """Bounds what a transaction of a migration waits for, and what it takes."""
    bounds = {"lock_timeout": LOCK_TIMEOUT_SECONDS, "statement_timeout": CHANGE_TIMEOUT_SECONDS}
    for name, seconds in bounds.items():
        connection.exec_driver_sql(f"SET LOCAL {name} = {round(seconds * 1000)}")


def _done(upgrade: Callable[[], None], connection: Connection, deadline: _Deadline) -> bool:
    """Whether the upgrade came to its end; False where a table was in use, and it may be tried again."""
    try:
        upgrade()
    except sqlalchemy.exc.OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
            raise
        connection.rollback()
        if deadline.left <= 0:
            raise SchemaBusyError(
                f"A table was in use for {deadline.seconds:g} s, so the schema could not be changed: "
                "look for a transaction that stays open, and run `signin migrate` again.",
                retry_after_seconds=5,
            ) from error
        log.warning("a table is in use; the migration lets the others pass and tries again")
        return False
    return True
