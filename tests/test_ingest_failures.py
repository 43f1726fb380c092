"""What happens to sign-ins when their last home fails: Pub/Sub is away and the database cannot be written.

The service runs in a process of its own, as in production. No answer is 2xx unless its event is in the
outbox, every answer comes in bounded time, memory stays flat, and all is well again without a restart.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest

from service.config import Settings
from service.db import migrate
from tests.ingest_witness import (
    RECOVERY_SECONDS,
    Witness,
    assert_refused_and_then_taken,
    without_pubsub,
    worker_count,  # noqa: F401
)
from tests.outbox_table import waiting_ids
from tests.postgres import Postgres
from tests.running import until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(240)]


@pytest.fixture
def sqlite_home(tmp_path):
    """A directory with a migrated database in it."""
    home = tmp_path / "database"
    home.mkdir()
    migrate(Settings(_env_file=None, database_url=f"sqlite:///{home / 'signin.db'}"))
    return home


def test_while_the_directory_of_its_database_is_away_the_service_refuses(tmp_path, sqlite_home, workers):
    url = f"sqlite:///{sqlite_home / 'signin.db'}"
    away = tmp_path / "away"
    with without_pubsub(tmp_path, url, workers=workers) as server:
        assert_refused_and_then_taken(
            server,
            lambda: sqlite_home.rename(away),
            lambda: away.rename(sqlite_home),
            waiting=lambda: waiting_ids(url, tmp_path),
        )


def test_a_database_file_that_was_removed_takes_nothing_until_there_is_a_new_one(
    tmp_path, sqlite_home, workers
):
    url = f"sqlite:///{sqlite_home / 'signin.db'}"

    def remove():
        for path in sqlite_home.iterdir():
            path.unlink()

    with without_pubsub(tmp_path, url, workers=workers) as server:
        assert_refused_and_then_taken(
            server,
            remove,
            lambda: migrate(Settings(_env_file=None, database_url=url)),
            waiting=lambda: waiting_ids(url, tmp_path),
            keeps=False,
        )


def test_a_database_file_that_was_replaced_by_junk_takes_nothing(tmp_path, sqlite_home, workers):
    url = f"sqlite:///{sqlite_home / 'signin.db'}"
    away, junk = tmp_path / "away", tmp_path / "junk"
    junk.mkdir()
    (junk / "signin.db").write_bytes(b"this is no database " * 1000)

    def replace():
        sqlite_home.rename(away)
        junk.rename(sqlite_home)

    def put_back():
        sqlite_home.rename(junk)
        away.rename(sqlite_home)

    with without_pubsub(tmp_path, url, workers=workers) as server:
        assert_refused_and_then_taken(server, replace, put_back, waiting=lambda: waiting_ids(url, tmp_path))


@pytest.fixture
def own_postgres():
    """PostgreSQL servers of one directory: one that a test may stop, and those that it starts after it."""
    with tempfile.TemporaryDirectory(prefix="signin-postgres-", ignore_cleanup_errors=True) as directory:
        servers = [Postgres(Path(directory) / "data")]
        try:
            yield servers
        finally:
            servers[-1].stop()


def test_without_its_database_server_the_service_refuses_and_recovers_by_itself(
    tmp_path, own_postgres, workers
):
    url = own_postgres[0].create(migrated=True)
    with without_pubsub(tmp_path, url, workers=workers) as server:
        assert_refused_and_then_taken(
            server,
            own_postgres[0].stop,
            lambda: own_postgres.append(Postgres(own_postgres[0].directory)),
            waiting=lambda: waiting_ids(url, tmp_path),
        )


def test_a_database_server_that_hangs_costs_bounded_time(tmp_path, own_postgres, workers):
    url = own_postgres[0].create(migrated=True)

    def send(number):
        for pid in own_postgres[0].pids():
            os.kill(pid, number)

    with without_pubsub(tmp_path, url, workers=workers) as server:
        assert_refused_and_then_taken(
            server,
            lambda: send(signal.SIGSTOP),
            lambda: send(signal.SIGCONT),
            waiting=lambda: waiting_ids(url, tmp_path),
        )


def test_on_a_database_server_that_only_reads_the_service_refuses_and_recovers_by_itself(
    tmp_path, postgres, workers
):
    url = postgres.create(migrated=True)
    name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]

    def alter(change):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f'ALTER DATABASE "{name}" {change}')
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    with without_pubsub(tmp_path, url, workers=workers) as server:
        assert_refused_and_then_taken(
            server,
            lambda: alter("SET default_transaction_read_only = on"),
            lambda: alter("RESET default_transaction_read_only"),
            waiting=lambda: waiting_ids(url, tmp_path),
        )


def set_writable(path, writable):
    """Skips where neither permissions nor the immutable flag keep this user from writing."""
    if os.getuid():
        path.chmod((0o755 if path.is_dir() else 0o644) if writable else (0o555 if path.is_dir() else 0o444))
    elif subprocess.run(["chattr", "-i" if writable else "+i", path], check=False).returncode:
        pytest.skip("root writes everywhere on this file system")


@pytest.mark.parametrize("also_directory", [False, True])
def test_a_database_file_that_cannot_be_written_at_the_start_is_used_once_it_can(tmp_path, also_directory):
    home = tmp_path / "database"
    home.mkdir()
    file = home / "signin.db"
    url = f"sqlite:///{file}"
    migrate(Settings(_env_file=None, database_url=url))
    protected = [file, home] if also_directory else [file]
    try:
        for path in protected:
            set_writable(path, False)
        with without_pubsub(tmp_path, url) as server:
            witness = Witness(server)
            assert {answer.status for answer in witness.press(300)} == {503}
            for path in reversed(protected):
                set_writable(path, True)
            until(lambda: witness.one().is_success, RECOVERY_SECONDS)
            assert witness.promised <= waiting_ids(url, tmp_path)
    finally:
        for path in reversed(protected):
            set_writable(path, True)


def test_behind_a_lock_of_another_program_the_service_refuses_in_bounded_time(
    tmp_path, database_url, workers
):
    locks = contextlib.ExitStack()

    def lock():
        if database_url.startswith("sqlite"):
            path = database_url.removeprefix("sqlite:///")
            connection = sqlite3.connect(path, isolation_level=None)
            locks.callback(connection.close)
            connection.execute("BEGIN IMMEDIATE")
        else:
            connection = locks.enter_context(psycopg.connect(database_url))
            connection.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")

    with without_pubsub(tmp_path, database_url, workers=workers) as server:
        assert_refused_and_then_taken(
            server,
            lock,
            locks.close,
            waiting=lambda: waiting_ids(database_url, tmp_path),
            requests=700,  # callers wait up to the deadline of a commit, again and again
        )
