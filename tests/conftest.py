"""What several tests stand on: the two databases, each test with a fresh one."""

from __future__ import annotations

import itertools
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import bytecode

bytecode.keep()  # before anything is imported that takes time
# What is run in the background of a script ignores SIGINT, and so would the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes is the machine's affair.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

from service.config import Settings
from service.db import Database, migrate
from tests.job_world import World, make_world
from tests.postgres import Postgres, postgres_server

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file that tests copy."""
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    migrate(Settings(_env_file=None, database_url=f"sqlite:///{path}"))
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def create_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[bool], str]]:
    """Makes a fresh database, migrated or empty, and returns its URL; the test runs once on each kind."""
    made: list[tuple[Postgres, str]] = []

    def create(migrated: bool) -> str:
        if request.param == "postgresql":
            server: Postgres = request.getfixturevalue("postgres")
            made.append((server, url := server.create(migrated=migrated)))
            return url
        path = tmp_path / f"test_{next(_numbers)}.db"
        if migrated:
            shutil.copyfile(request.getfixturevalue("migrated_sqlite"), path)
        else:
            path.touch()
        return f"sqlite:///{path}"

    yield create
    for server, url in made:
        server.drop(url)


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
