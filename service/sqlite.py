"""What every connection to SQLite gets before it is used, and whether its file is still the database.

A connection in WAL mode goes on writing into a file that was removed, replaced or unmounted, and every
commit succeeds: what it keeps is gone with the connection. So the file is looked at before each use, and
after each commit of events. https://www.sqlite.org/howtocorrupt.html section 2.5
"""

from __future__ import annotations

import os
import sqlite3
import time
from typing import Any

from sqlalchemy import Connection, Engine, ExceptionContext, event
from sqlalchemy.exc import DisconnectionError

BUSY_SECONDS = 5
WAL_TRIES = 100
WAL_PAUSE_SECONDS = 0.05


_FILE = "signin.file"


def file_identity(path: str | None) -> tuple[int, int] | None:
    """Which file is at the path, None where none is; a database in memory has no path."""
    try:
        found = os.stat(path or "")  # noqa: PTH116 -- a Path costs twice the call, before every use
    except OSError:
        return None
    return found.st_dev, found.st_ino


def has_its_file(path: str | None, info: dict[str, Any]) -> bool:
    """Whether the connection with this `info` has the file open that is at the path now."""
    return file_identity(path) == info.get(_FILE)


def _write_ahead(cursor: Any) -> None:
    """Puts a new file into WAL mode, for good. SQLite does not wait for other connections there, so we do."""
    for attempt in range(WAL_TRIES):
        cursor.execute("PRAGMA journal_mode")
        if cursor.fetchone()[0] in ("wal", "memory"):
            return
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if attempt == WAL_TRIES - 1:
                raise
            time.sleep(WAL_PAUSE_SECONDS)


def prepare_sqlite(engine: Engine, *, foreign_keys: bool, busy_seconds: float = BUSY_SECONDS) -> None:
    """Gives each connection its pragmas, and takes BEGIN over from the driver, which would begin too late."""
    path = engine.url.database

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        record.info[_FILE] = file_identity(path)
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {round(busy_seconds * 1000)}")
        _write_ahead(cursor)
        cursor.execute("PRAGMA synchronous = FULL")  # an event in the outbox survives a power cut
        cursor.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
        cursor.close()

    @event.listens_for(engine, "checkout")
    def checked_out(_connection: Any, record: Any, _proxy: Any) -> None:
        if not has_its_file(path, record.info):
            raise DisconnectionError  # the pool opens the file that is there now

    @event.listens_for(engine, "handle_error")
    def failed(context: ExceptionContext) -> None:
        # A connection that found its file read-only stays so when the file is writable again: drop it.
        code = getattr(context.original_exception, "sqlite_errorcode", 0) or 0
        if code & 0xFF == sqlite3.SQLITE_READONLY:
            context.is_disconnect = True

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
