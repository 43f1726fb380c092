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
        if _lacks_tables(error):
            detail = "The metadata database has not the tables of this version: run `signin migrate`."
        elif getattr(getattr(error, "orig", None), "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CANTOPEN:
            detail = FILE_GONE
        raise DatabaseUnavailableError(detail, retry_after_seconds=5) from error


def was_never_made(error: DatabaseUnavailableError) -> bool:
    """Whether the database could not be used because it has no file, or not the tables of this version."""
    cause = error.__cause__
    code = getattr(getattr(cause, "orig", None), "sqlite_errorcode", 0) & 0xFF
    return isinstance(cause, Exception) and (code == sqlite3.SQLITE_CANTOPEN or _lacks_tables(cause))


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
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE_CODES
    return getattr(cause, "sqlstate", "") in _SQLSTATES


def _lacks_tables(error: Exception) -> bool:
    """Tells a database that was never migrated from one that is away."""
    cause = getattr(error, "orig", None)
    if isinstance(cause, sqlite3.OperationalError):
        return cause.sqlite_errorname == "SQLITE_ERROR"  # of our own statements only: no such table
    return str(getattr(cause, "sqlstate", "")) == "42P01"
