"""What every connection to SQLite gets before it is used."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

from sqlalchemy import Connection, Engine, ExceptionContext, event

BUSY_SECONDS = 5
WAL_TRIES = 100
WAL_PAUSE_SECONDS = 0.05


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


def prepare_sqlite(engine: Engine, *, foreign_keys: bool, busy_seconds: int = BUSY_SECONDS) -> None:
    """Gives each connection its pragmas, and takes BEGIN over from the driver, which would begin too late."""

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {busy_seconds * 1000}")
        _write_ahead(cursor)
        cursor.execute("PRAGMA synchronous = FULL")  # an event in the outbox survives a power cut
        cursor.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
        cursor.close()

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
