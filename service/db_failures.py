"""Which failures of the database mean that it cannot be used now, and how that is told."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy.exc

from service.errors import DatabaseUnavailableError

log = logging.getLogger(__name__)

# What SQLite calls operational by itself: not migrated yet, and a standby that cannot be written.
_SQLSTATES = frozenset({"42P01", "25006"})
# Its file holds something else, or is damaged.
_SQLITE_CODES = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT})
FILE_GONE = (
    "The file of the metadata database cannot be opened: if there never was one, run `signin migrate`."
)
_FULL = "The disk of the metadata database is full."
_READ_ONLY = "The metadata database cannot be written."
# By SQLite's code or PostgreSQL's SQLSTATE; of the others it is told that there was no answer.
_DETAILS: dict[object, str] = {
    sqlite3.SQLITE_CANTOPEN: FILE_GONE,
    sqlite3.SQLITE_FULL: _FULL,
    "53100": _FULL,
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    "25006": _READ_ONLY,
}
_UNAVAILABLE = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
    TimeoutError,
)


@contextmanager
def told_as_unavailable() -> Iterator[None]:
    """Turns operational failures of the database into DatabaseUnavailableError, the cause in the log only."""
    try:
        yield
    except (*_UNAVAILABLE, sqlalchemy.exc.DatabaseError) as error:
        if not isinstance(error, _UNAVAILABLE) and not _is_known(error.orig):
            raise
        log.warning("the database cannot be used: %s", _named(error))
        log.debug("the database's own error", exc_info=error)
        detail = "The metadata database did not answer."
        cause = getattr(error, "orig", None)
        if _lacks_tables(error):
            detail = "The metadata database has not the tables of this version: run `signin migrate`."
        else:
            detail = _DETAILS.get(_sqlite_code(cause) or getattr(cause, "sqlstate", None), detail)
        raise DatabaseUnavailableError(detail, retry_after_seconds=5) from error


def was_never_made(error: DatabaseUnavailableError) -> bool:
    """Whether the database could not be used because it has no file, or not the tables of this version."""
    cause = error.__cause__
    code = _sqlite_code(getattr(cause, "orig", None))
    return isinstance(cause, Exception) and (code == sqlite3.SQLITE_CANTOPEN or _lacks_tables(cause))


def _sqlite_code(cause: object) -> int:
    """The primary error code of SQLite, 0 where the error is none of its own."""
    code: int = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    return code


def _named(error: Exception) -> str:
    """The kind of a failure in its database's own names, without values and addresses."""
    cause = getattr(error, "orig", None) or error
    name = getattr(cause, "sqlite_errorname", None)
    if hasattr(cause, "sqlstate"):  # psycopg's, which only PostgreSQL loads
        name = f"SQLSTATE {cause.sqlstate}" if cause.sqlstate else "no connection"
    return f"{type(cause).__name__} ({name})" if name else type(cause).__name__


def _is_known(cause: BaseException | None) -> bool:
    """Whether an error that is none of operation by its class means that the database cannot be used."""
    if isinstance(cause, sqlite3.DatabaseError):
        return _sqlite_code(cause) in _SQLITE_CODES
    return getattr(cause, "sqlstate", "") in _SQLSTATES


def _lacks_tables(error: Exception) -> bool:
    """Tells a database that was never migrated from one that is away."""
    cause = getattr(error, "orig", None)
    if isinstance(cause, sqlite3.OperationalError):
        return cause.sqlite_errorname == "SQLITE_ERROR"  # of our own statements only: no such table
    return str(getattr(cause, "sqlstate", "")) == "42P01"
