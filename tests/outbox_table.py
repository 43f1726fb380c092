"""The outbox table as another program sees it: what waits in it, read past the service."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import psycopg


def _rows(statement: str, database_url: str, directory: Path) -> list[tuple]:
    if database_url.startswith("postgres"):
        with psycopg.connect(database_url, connect_timeout=10) as connection:
            return connection.execute(statement).fetchall()
    path = database_url.removeprefix("sqlite:///") or directory / ".signin" / "signin.db"
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def waiting_rows(database_url: str, directory: Path) -> int:
    """How many events wait; without a URL in the SQLite file of the service that runs in `directory`."""
    return _rows("SELECT count(*) FROM outbox WHERE parked_at IS NULL", database_url, directory)[0][0]


def waiting_ids(database_url: str, directory: Path) -> set[str]:
    return {event_id for (event_id,) in _rows("SELECT event_id FROM outbox", database_url, directory)}
