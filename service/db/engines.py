"""How an engine for either kind of database is made: every wait of it is bounded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, make_url

from service.config import Settings
from service.errors import ConfigError
from service.sqlite import prepare_sqlite

CONNECT_TIMEOUT_SECONDS = 5
STATEMENT_TIMEOUT_SECONDS = 10
POOL_SIZE = 10
POOL_OVERFLOW = 10


def engine_options(
    url: URL, statement_timeout_seconds: int | None = STATEMENT_TIMEOUT_SECONDS
) -> dict[str, Any]:
    """Arguments of create_engine that bound every wait; None lets statements take their time."""
    # Errors are logged with their statement: the values in it belong to the callers.
    if is_sqlite(url):
        return {"hide_parameters": True, "connect_args": {"timeout": CONNECT_TIMEOUT_SECONDS}}
    limits = "-c timezone=UTC"
    if statement_timeout_seconds is None:
        # A machine that is gone holds nothing for longer than a minute.
        limits += " -c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
    else:
        limits += (
            f" -c statement_timeout={statement_timeout_seconds * 1000}"
            f" -c idle_in_transaction_session_timeout={(statement_timeout_seconds + 20) * 1000}"
        )
    return {
        "hide_parameters": True,
        "connect_args": {"connect_timeout": CONNECT_TIMEOUT_SECONDS, "options": limits},
        "pool_size": POOL_SIZE,
        "max_overflow": POOL_OVERFLOW,
        "pool_timeout": CONNECT_TIMEOUT_SECONDS,
        "pool_pre_ping": True,
    }


def blocking_engine(
    url: URL, *, statement_timeout_seconds: int | None, busy_seconds: float, foreign_keys: bool = True
) -> Engine:
    """An engine for a thread without an event loop; `busy_seconds` is how long SQLite waits for a writer."""
    prepare_directory(url)
    if not is_sqlite(url):
        return create_engine(url, **engine_options(url, statement_timeout_seconds))
    engine = create_engine(url.set(drivername="sqlite"), **engine_options(url))
    prepare_sqlite(engine, foreign_keys=foreign_keys, busy_seconds=busy_seconds)
    return engine


@contextmanager
def reading_connection(settings: Settings) -> Iterator[Connection]:
    """A connection for a look before there is an event loop; it waits for nobody who migrates."""
    engine = blocking_engine(
        make_url(settings.async_database_url),
        statement_timeout_seconds=STATEMENT_TIMEOUT_SECONDS,
        busy_seconds=CONNECT_TIMEOUT_SECONDS,
    )
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def new_file(settings: Settings) -> Path | None:
    """The absolute path at which migrating will make a SQLite file; None where that makes none."""
    url = make_url(settings.async_database_url)
    if not is_sqlite(url) or url.database in (None, "", ":memory:"):
        return None
    path = Path(str(url.database)).absolute()
    return None if is_there(path) else path


def is_there(path: str | Path) -> bool:
    """Whether there is such a file; not where nobody may look, which whoever opens it is told."""
    return os.path.exists(path)  # noqa: PTH110 -- Path.exists raises PermissionError


def prepare_directory(url: URL) -> None:
    """Makes the directory of a SQLite file; the file is made by migrating. Raises ConfigError."""
    if is_sqlite(url) and url.database and url.database != ":memory:":
        directory = Path(url.database).parent
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the directory {directory} cannot be made: {error.strerror}") from error
