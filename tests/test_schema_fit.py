"""Programs of different releases on one database: who works, who refuses, and what each says."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from service.db import migrate, migration_connection, schema
from service.db.migrations import SchemaBusyError
from service.db.schema import Revisions, judge
from service.errors import ConfigError
from tests.running import clean_environment
from tests.serving import ARTICLE, JSON, assert_problem, pubsub_with_topic, serving, settings_for

OURS = Revisions(frozenset({"0001", "0002", "0003"}), "0003")


@pytest.mark.parametrize(
    ("applied", "works_from", "kind", "said"),
    [
        (set(), None, "older", "no schema"),
        ({"0003"}, "0001", "current", "0003"),
        ({"0002"}, "0001", "older", "`signin migrate`"),
        ({"0005"}, "0003", "newer", "compatible"),
        ({"0005"}, "0001", "newer", "compatible"),
        ({"0005"}, "0004", "too_new", "from revision 0004 on"),
        ({"0005"}, None, "too_new", "start a newer release"),
    ],
)
def test_a_program_tells_whether_it_may_work_on_a_schema(applied, works_from, kind, said):
    fit = judge(applied, OURS, works_from)
    assert (fit.kind, fit.works) == (kind, kind in ("current", "newer"))
    assert said in fit.sentence


def by_a_later_release(url, works_from):
    """Leaves the database as the migration 9999 of a release leaves it that this program does not know."""
    with migration_connection(settings_at(url)) as connection:
        connection.execute(text("ALTER TABLE jobs ADD COLUMN colour VARCHAR(16)"))
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        row = {"from": works_from, "at": "2027-01-01 00:00:00+00:00"}
        note = "INSERT INTO schema_history VALUES ('9999', :from, :at, 'a later release')"
        connection.execute(text(note), row)


def settings_at(url):
    return settings_for("unused", database_url=url)


async def test_an_older_program_starts_and_works_on_a_compatible_newer_schema_and_says_so(
    tmp_path, database_url, caplog
):
    newest = schema.revisions().newest
    by_a_later_release(database_url, newest)
    caplog.set_level(logging.WARNING, "service")
    async with pubsub_with_topic(tmp_path, database_url=database_url) as (_, settings, _reader):
        assert migrate(settings) == []  # and its own `signin migrate` changes nothing
        async with serving(settings) as client:
            ready = await client.get("/readyz")
            assert ready.status_code == 200, ready.text
            assert ready.json()["dependencies"]["database"]["ok"]
            assert "newer than this program's" in ready.json()["database_schema"]
            assert (await client.post("/events/signin", content=ARTICLE, headers=JSON)).status_code == 202
    assert any("newer than this program's" in record.getMessage() for record in caplog.records)
    with migration_connection(settings) as connection:
        assert schema.applied_revisions(connection) == {"9999"}


async def test_an_older_program_refuses_a_schema_that_no_longer_serves_it(tmp_path, database_url):
    by_a_later_release(database_url, "9998")
    async with pubsub_with_topic(tmp_path, database_url=database_url) as (_, settings, _reader):
        with pytest.raises(ConfigError, match="start a newer release"):
            migrate(settings)
        async with serving(settings) as client:
            problem = assert_problem(await client.get("/readyz"), 503, "not_ready")
            assert "from revision 9998 on" in problem["dependencies"]["database"]["cause"]


async def test_a_newer_program_refuses_readiness_on_an_older_schema_until_it_is_migrated(
    tmp_path, empty_database_url, monkeypatch
):
    monkeypatch.setattr("service.health.readiness.CACHE_SECONDS", 0.0)
    async with pubsub_with_topic(tmp_path, database_url=empty_database_url) as (_, settings, _reader):
        migrate(settings, "0006")
        async with serving(settings) as client:
            problem = assert_problem(await client.get("/readyz"), 503, "not_ready")
            assert problem["dependencies"]["database"]["cause"] == (
                f"The schema is at revision 0006, and this program needs {schema.revisions().newest}: "
                "run `signin migrate`."
            )
            await asyncio.to_thread(migrate, settings)
            assert (await client.get("/readyz")).status_code == 200


async def test_a_program_that_works_keeps_its_sign_ins_when_the_schema_leaves_it_behind(
    tmp_path, database_url, monkeypatch
):
    monkeypatch.setattr("service.health.readiness.CACHE_SECONDS", 0.0)
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url) as (_, settings, _reader),
        serving(settings) as client,
    ):
        assert (await client.get("/readyz")).status_code == 200
        # In a thread: the change waits for locks of the service, whose transactions end in this loop.
        await asyncio.to_thread(by_a_later_release, database_url, "9998")
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert "start a newer release" in ready.json()["dependencies"]["database"]["cause"]


def history(url):
    with migration_connection(settings_at(url)) as connection:
        rows = connection.execute(text("SELECT revision, works_from, applied_by FROM schema_history"))
        return {revision: (works_from, by) for revision, works_from, by in rows}


def test_each_migration_leaves_a_note_of_itself_and_takes_it_back(empty_database_url):
    applied = migrate(settings_at(empty_database_url))
    assert applied == sorted(schema.revisions().known)
    found = history(empty_database_url)
    assert max(found) == schema.revisions().newest
    assert all(works_from in schema.revisions().known for works_from, _ in found.values())
    assert all("process" in by for _, by in found.values())
    assert migrate(settings_at(empty_database_url)) == []


@contextmanager
def held(url, statement):
    """Another session that has run the statement in a transaction of its own, until the block ends."""
    with migration_connection(settings_at(url)) as connection:
        connection.execute(text("SELECT pg_advisory_unlock_all()"))
        connection.execute(text(statement))
        yield


def test_one_that_waits_for_another_gives_up_after_its_time_and_says_so(empty_database_url):
    with (
        migration_connection(settings_at(empty_database_url)),
        pytest.raises(SchemaBusyError, match=r"0\.2 s"),
    ):
        migrate(settings_at(empty_database_url), wait_seconds=0.2)


class TestPostgres:
    """What only PostgreSQL has: locks of tables, and work outside of a transaction."""

    @pytest.fixture
    def url(self, postgres):
        return postgres.create(migrated=False)

    @pytest.fixture
    def soon(self, monkeypatch):
        monkeypatch.setattr("service.db.migrations.LOCK_TIMEOUT_SECONDS", 0.1)
        monkeypatch.setattr("service.db.migrations._PAUSE_SECONDS", 0.05)

    def test_a_table_in_use_is_let_go_and_tried_again(self, url, soon, caplog):
        migrate(settings_at(url), "0002")
        caplog.set_level(logging.WARNING, "service")
        found = []
        with held(url, "LOCK TABLE jobs IN ACCESS SHARE MODE"):
            migrating = threading.Thread(target=lambda: found.extend(migrate(settings_at(url))))
            migrating.start()
            while not caplog.records:  # it has met the lock
                migrating.join(0.01)
                assert migrating.is_alive()
        migrating.join(30)
        assert found == [revision for revision in sorted(schema.revisions().known) if revision > "0002"]

    def test_a_table_in_use_for_too_long_is_told_and_nothing_is_half_done(self, url, soon):
        migrate(settings_at(url), "0002")
        with (
            held(url, "LOCK TABLE jobs IN ACCESS SHARE MODE"),
            pytest.raises(SchemaBusyError, match="A table was in use"),
        ):
            migrate(settings_at(url), wait_seconds=0.2)
        with migration_connection(settings_at(url)) as connection:
            assert schema.applied_revisions(connection) == {"0002"}

    def test_every_transaction_of_a_migration_is_bounded(self, url):
        with migration_connection(settings_at(url)) as connection:
            bounds = [
                connection.execute(text(f"SHOW {name}")).scalar_one()
                for name in ("lock_timeout", "statement_timeout")
            ]
            assert bounds == ["2s", "1min"]

    def test_of_commands_that_migrate_at_once_one_applies_each_migration(self, url, tmp_path):
        command = [sys.executable, "-m", "service", "migrate", "--wait", "60"]
        environment = clean_environment() | {"SIGNIN_DATABASE_URL": url}
        running = [
            subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        said = [process.communicate(timeout=60)[0] for process in running]
        assert [process.returncode for process in running] == [0, 0, 0]
        assert sorted(text.count("Applied") for text in said) == [0, 0, 1]
        assert all("The database is at the newest schema." in text for text in said)

    def test_an_index_is_built_beside_the_work_while_others_wait_to_migrate(self, url, tmp_path, monkeypatch):
        migrate(settings_at(url))
        scripts = tmp_path / "alembic"
        shutil.copytree(schema.scripts_directory(), scripts)
        sample = CONCURRENTLY.format(schema.revisions().newest)
        (scripts / "versions" / "9999_concurrently.py").write_text(sample)
        monkeypatch.setattr(schema, "scripts_directory", lambda: scripts)
        schema.revisions.cache_clear()
        try:
            with ThreadPoolExecutor(3) as pool, held(url, "SELECT count(*) FROM outbox"):
                waiting = [pool.submit(migrate, settings_at(url)) for _ in range(3)]
            assert sorted(each.result() for each in waiting) == [[], [], ["9999"]]
        finally:
            schema.revisions.cache_clear()
        with migration_connection(settings_at(url)) as connection:
            valid = text("SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_outbox_event'::regclass")
            assert connection.execute(valid).scalar_one()


CONCURRENTLY = """
from alembic import op
revision, down_revision, branch_labels, depends_on, works_from = "9999", "{}", None, None, "0003"

def upgrade():
    with op.get_context().autocommit_block():
        op.create_index("ix_outbox_event", "outbox", ["event_id"], postgresql_concurrently=True)
"""
