"""The database as the service uses it: sessions, transactions, and whether it can be reached."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from threading import Thread
from typing import Any
from urllib.parse import quote
from weakref import WeakSet

import aiosqlite
import sqlalchemy.exc
from sqlalchemy import Executable, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from service.config import Settings
from service.db import schema
from service.db.engines import STATEMENT_TIMEOUT_SECONDS, engine_options, is_sqlite, prepare_directory
from service.db.schema import Fit
from service.db_failures import FILE_GONE, told_as_unavailable
from service.errors import DatabaseUnavailableError
from service.sqlite import has_its_file, prepare_sqlite

WORKERS_END_SECONDS = 1.0
# For one statement after the other: nobody waits for the pool, and a broken connection shows by itself.
_COMMITTING = {"pool_size": 1, "max_overflow": 1, "pool_pre_ping": False, "isolation_level": "AUTOCOMMIT"}


class Database:
    """One pool of connections; `session()` reads, `transaction()` writes.

    Nothing may call Google while one of them is open. Operational failures of the database leave
    both as DatabaseUnavailableError.
    """

    def __init__(self, settings: Settings) -> None:
        url = make_url(settings.async_database_url)
        prepare_directory(url)
        self.is_sqlite = is_sqlite(url)
        options = engine_options(url)
        self._workers: WeakSet[Thread] = WeakSet()
        if self.is_sqlite:
            options["connect_args"]["async_creator_fn"] = self._connect_sqlite
        self._engine = create_async_engine(url, **options)
        if self.is_sqlite:
            prepare_sqlite(self._engine.sync_engine, foreign_keys=True)
        self._writing_engine = self._engine.execution_options(writes=True)
        self._committing_engine = (
            None if self.is_sqlite else create_async_engine(url, **options | _COMMITTING)
        )

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """A session for reading; what it changes is rolled back."""
        with told_as_unavailable():
            async with AsyncSession(self._engine, expire_on_commit=False) as session:
                yield session

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """A session for writing, committed at the end of the block unless it raises.

        On SQLite the transaction begins as IMMEDIATE: writers queue up to the busy timeout, where a
        reader that turns into a writer would fail at once.
        """
        with told_as_unavailable():
            async with AsyncSession(self._writing_engine, expire_on_commit=False) as session, session.begin():
                yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a write transaction, as `transaction()` without the costs of the ORM."""
        with told_as_unavailable():
            async with self._writing_engine.begin() as connection:
                yield connection

    async def write_by_itself(self, statement: Executable, values: Mapping[str, Any]) -> None:
        """One statement that is a transaction by itself, on PostgreSQL: one round trip instead of four.

        Done a second time where the connection turns out to be broken, perhaps after it took effect.
        """
        engine = self._committing_engine
        assert engine
        with told_as_unavailable():
            try:
                async with engine.connect() as connection:
                    await connection.execute(statement, values)
            except sqlalchemy.exc.DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                async with engine.connect() as connection:
                    await connection.execute(statement, values)

    async def write_at_once(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> None:
        """One transaction of statements with their values, on SQLite; with the driver's own calls.

        Each call is a round trip to the connection's thread, and its return waits until the event loop
        lets go of the interpreter. So a statement that comes alone is a transaction by itself.
        """
        if len(statements) > 1:
            statements = [("BEGIN IMMEDIATE", ()), *statements, ("COMMIT", ())]
        with told_as_unavailable():
            async with self._engine.connect() as connection:
                driver: Any = (await connection.get_raw_connection()).driver_connection
                for statement, values in statements:
                    try:
                        await driver.execute(statement, values)
                    except sqlite3.DatabaseError as error:
                        kind = sqlalchemy.exc.DatabaseError.instance
                        raise kind(statement, None, error, sqlite3.Error) from error
                if not has_its_file(self._engine.url.database, connection.info):
                    raise DatabaseUnavailableError(FILE_GONE, retry_after_seconds=5)

    async def ping(self, *, deadline_seconds: float = 2.0) -> None:
        """Raises DatabaseUnavailableError unless the database answers in time."""
        with told_as_unavailable():
            async with asyncio.timeout(deadline_seconds), self._engine.connect() as connection:
                await connection.execute(text("SELECT 1"))

    async def fit(self) -> Fit:
        """How the schema fits this program."""
        await asyncio.to_thread(schema.revisions)  # reads files
        with told_as_unavailable():
            async with asyncio.timeout(STATEMENT_TIMEOUT_SECONDS), self._engine.connect() as connection:
                return await connection.run_sync(schema.look)

    async def close(self) -> None:
        """Closes every connection, and waits a moment for the threads of those that broke off.

        A thread that ended after the event loop could not tell it so and would die with a traceback.
        """
        await self._engine.dispose()
        if self._committing_engine:
            await self._committing_engine.dispose()
        await asyncio.to_thread(join_threads, list(self._workers), WORKERS_END_SECONDS)

    def _connect_sqlite(self, path: str, *args: Any, **options: Any) -> aiosqlite.Connection:
        # Migrating makes the file. A service that made one would put it in the place of one that has gone.
        if path != ":memory:":
            path, options["uri"] = f"file:{quote(path)}?mode=rw", True
        connection = aiosqlite.connect(path, *args, **options)
        thread = connection._thread  # noqa: SLF001 -- SQLAlchemy takes the same way to make it a daemon
        thread.daemon = True
        self._workers.add(thread)
        return connection


def join_threads(threads: Sequence[Thread], seconds: float) -> None:
    """Waits until the threads have ended, at most so long."""
    until = time.monotonic() + seconds
    for thread in threads:
        if thread.is_alive():
            thread.join(max(0.0, until - time.monotonic()))
