"""The outbox on databases that do not do as they are told: full, locked, ended, gone, or read only."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import suppress
from datetime import UTC, datetime

import psycopg
import pytest
import sqlalchemy.event

from service import outbox_store
from service.db import Database
from service.errors import DatabaseUnavailableError
from service.outbox import Outbox
from tests.publishing import message, outbox_events, settings_with


async def spooled(outbox, *messages):
    """Spools the messages as soon as the outbox asks a database again that had failed."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await outbox.spool(messages)
            except DatabaseUnavailableError:
                await asyncio.sleep(0.02)


async def test_a_missing_table_is_a_database_that_cannot_be_used(empty_database_url):
    database = Database(settings_with(empty_database_url))
    outbox = Outbox(database, settings_with(empty_database_url))
    with pytest.raises(DatabaseUnavailableError):
        await outbox.spool([message(1)])
    with pytest.raises(DatabaseUnavailableError):
        await outbox.require_writable()
    assert outbox.rows == 0
    await database.close()


async def test_a_read_only_database_takes_nothing_and_says_so(database_url):
    database = Database(settings_with(database_url))
    if database.is_sqlite:

        @sqlalchemy.event.listens_for(database._engine.sync_engine, "connect")
        def connected(connection, _record):
            connection.cursor().execute("PRAGMA query_only = ON")

    else:
        with psycopg.connect(database_url, autocommit=True) as connection:
            name = connection.info.dbname
            connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    outbox = Outbox(database, settings_with(database_url))
    for attempt in (outbox.spool, outbox.require_writable):
        with pytest.raises(DatabaseUnavailableError, match="cannot be written"):
            await (attempt([message(1)]) if attempt == outbox.spool else attempt())
    await database.close()


async def test_a_look_whether_events_can_be_kept_finds_a_full_disk_and_leaves_nothing(
    tmp_path, migrated_sqlite
):
    url = f"sqlite:///{tmp_path / 'full.db'}"
    (tmp_path / "full.db").write_bytes(migrated_sqlite.read_bytes())
    database = Database(settings_with(url))
    outbox = Outbox(database, settings_with(url))
    await outbox.require_writable()
    async with database.writing() as connection:
        # SQLite takes it for as many as there are.
        await connection.exec_driver_sql("PRAGMA max_page_count = 1")
    with suppress(DatabaseUnavailableError):
        while True:
            await outbox.spool([(b"x" * 4000, {})])
    for _ in range(2):
        outbox._broken_until = 0.0  # as after the pause in which nobody asks
        with pytest.raises(DatabaseUnavailableError, match="The disk of the metadata database is full"):
            await outbox.require_writable()
    events = len(await outbox_events(outbox))
    async with database.writing() as connection:
        await connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    await outbox.require_writable()
    assert len(await outbox_events(outbox)) == events > 0
    await database.close()


async def test_after_a_commit_that_failed_its_cause_is_told_until_one_succeeds(database, database_url):
    now = 1000.0
    outbox = Outbox(database, settings_with(database_url), monotonic=lambda: now)
    async with database.writing() as connection:
        await connection.exec_driver_sql("ALTER TABLE outbox RENAME TO gone")
    with pytest.raises(DatabaseUnavailableError, match="has not the tables"):
        await outbox.spool([message(1)])
    async with database.writing() as connection:
        await connection.exec_driver_sql("ALTER TABLE gone RENAME TO outbox")
    for attempt in (outbox.spool([message(1)]), outbox.require_writable()):
        with pytest.raises(DatabaseUnavailableError, match="has not the tables"):
            await attempt
    now += 1
    await outbox.require_writable()
    await outbox.spool([message(1)])
    assert len(await outbox_events(outbox)) == 1


@pytest.mark.parametrize("create_database", ["postgresql"], indirect=True)  # SQLite has one writer anyway
async def test_a_look_that_hangs_in_one_replica_keeps_no_other_waiting(database, database_url):
    outbox = Outbox(database, settings_with(database_url, outbox_deadline_seconds=1.0))
    async with database.writing() as connection:
        await outbox_store.require_writable(connection, datetime(2026, 1, 1, tzinfo=UTC))
        await outbox.require_writable()
    assert await outbox_events(outbox) == []


async def test_a_full_disk_takes_nothing_and_recovers_without_a_restart(tmp_path, migrated_sqlite):
    url = f"sqlite:///{tmp_path / 'full.db'}"
    (tmp_path / "full.db").write_bytes(migrated_sqlite.read_bytes())
    database = Database(settings_with(url))
    outbox = Outbox(database, settings_with(url))
    await outbox.spool([message(1)])
    async with database.writing() as connection:
        [(pages,)] = (await connection.exec_driver_sql("PRAGMA page_count")).fetchall()
        await connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 4}")
    with pytest.raises(DatabaseUnavailableError, match="The disk of the metadata database is full"):
        await outbox.spool([(b"x" * 4000, {}) for _ in range(50)])
    async with database.writing() as connection:
        await connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    await spooled(outbox, *((b"x" * 4000, {}) for _ in range(50)))
    assert (await outbox.status()).rows == 51
    await database.close()


async def test_a_database_that_is_locked_for_long_costs_a_bounded_time(tmp_path, migrated_sqlite):
    path = tmp_path / "locked.db"
    path.write_bytes(migrated_sqlite.read_bytes())
    settings = settings_with(f"sqlite:///{path}", outbox_deadline_seconds=0.3)
    database = Database(settings)
    outbox = Outbox(database, settings)
    await outbox.spool([message(1)])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    answers = await asyncio.gather(*(outbox.spool([message(i)]) for i in range(100)), return_exceptions=True)
    assert time.monotonic() - started < 10
    assert {type(answer) for answer in answers} == {DatabaseUnavailableError}
    other.execute("ROLLBACK")
    other.close()
    await spooled(outbox, message(7))
    assert outbox.rows == 2
    await database.close()


async def test_sqlite_commits_reach_the_disk_before_they_are_answered_for(tmp_path, migrated_sqlite):
    path = tmp_path / "durable.db"
    path.write_bytes(migrated_sqlite.read_bytes())
    database = Database(settings_with(f"sqlite:///{path}"))
    async with database.writing() as connection:
        assert (await connection.exec_driver_sql("PRAGMA synchronous")).scalar() == 2
        assert (await connection.exec_driver_sql("PRAGMA journal_mode")).scalar() == "wal"
    await database.close()


async def test_a_connection_that_postgresql_has_ended_costs_no_event(postgres):
    url = postgres.create(migrated=True)
    database = Database(settings_with(url))
    outbox = Outbox(database, settings_with(url))
    await outbox.spool([message(1)])
    with psycopg.connect(url, autocommit=True) as connection:
        ended = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchall()
    assert ended
    await outbox.spool([message(2)])
    assert [row["event_id"] for row in await outbox_events(outbox)] == ["event-1", "event-2"]
    await database.close()


@pytest.mark.parametrize("sqlstate", ["53100", "53200", "57014", "58030", "57P01", "40001", "XX000"])
async def test_whatever_postgresql_says_to_a_commit_no_event_has_been_kept_by_it(postgres, sqlstate):
    url = postgres.create(migrated=True)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{sqlstate}'; END$$"
        )
        connection.execute("CREATE TRIGGER refuse BEFORE INSERT ON outbox EXECUTE FUNCTION refuse()")
        database = Database(settings_with(url))
        try:
            outbox = Outbox(database, settings_with(url))
            with pytest.raises(DatabaseUnavailableError):
                await outbox.spool([message(1)])
            assert (outbox.rows, await outbox_events(outbox)) == (0, [])
            connection.execute("DROP TRIGGER refuse ON outbox")
            await spooled(outbox, message(2))
            assert [row["event_id"] for row in await outbox_events(outbox)] == ["event-2"]
        finally:
            await database.close()


async def test_a_sqlite_file_that_goes_between_two_commits_keeps_nothing(tmp_path, migrated_sqlite):
    path, away = tmp_path / "signin.db", tmp_path / "away.db"
    path.write_bytes(migrated_sqlite.read_bytes())
    database = Database(settings_with(f"sqlite:///{path}"))
    outbox = Outbox(database, settings_with(f"sqlite:///{path}"))
    try:
        await outbox.spool([message(1)])
        path.rename(away)
        with pytest.raises(DatabaseUnavailableError):
            await outbox.spool([message(2)])
        assert not path.exists()  # and no empty database takes its place
        away.rename(path)
        await spooled(outbox, message(3))
        assert [row["event_id"] for row in await outbox_events(outbox)] == ["event-1", "event-3"]
    finally:
        await database.close()


async def test_a_file_that_is_gone_after_the_commit_is_noticed_before_the_answer(tmp_path, migrated_sqlite):
    path = tmp_path / "signin.db"
    path.write_bytes(migrated_sqlite.read_bytes())
    settings = settings_with(f"sqlite:///{path}")
    database = Database(settings)
    try:
        await database.ping()

        @sqlalchemy.event.listens_for(database._engine.sync_engine, "checkout")
        def goes(connection, record, proxy):
            path.unlink(missing_ok=True)  # after the look before the statement

        with pytest.raises(DatabaseUnavailableError):
            await Outbox(database, settings).spool([message(1)])
    finally:
        await database.close()
