"""The migrations lead to the models, and back, on both databases."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlmodel import SQLModel
from typer.testing import CliRunner

from service import job_store
from service.cli import app
from service.config import Settings
from service.db import Database, migrate, migration_connection, schema, unmigrate
from service.errors import DatabaseUnavailableError


def settings_for(url: str) -> Settings:
    return Settings(_env_file=None, database_url=url)


def tables(url: str) -> set[str]:
    with migration_connection(settings_for(url)) as connection:
        return set(inspect(connection).get_table_names())


def partial_indexes(url: str) -> dict[str, str]:
    """Name and predicate of the partial indexes of `jobs`; alembic does not compare predicates."""
    with migration_connection(settings_for(url)) as connection:
        dialect = connection.dialect.name
        return {
            str(index["name"]): str(index["dialect_options"][f"{dialect}_where"]).strip("()")
            for index in inspect(connection).get_indexes("jobs")
            if index.get("dialect_options", {}).get(f"{dialect}_where") is not None
        }


def test_upgrade_to_head_makes_what_the_models_say(empty_database_url: str) -> None:
    migrate(settings_for(empty_database_url))
    with migration_connection(settings_for(empty_database_url)) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []
    assert partial_indexes(empty_database_url) == {
        "ix_jobs_active": "ended_at IS NULL",
        "ix_jobs_ended": "ended_at IS NOT NULL",
        "uq_jobs_active_subscription": "ended_at IS NULL",
    }


def test_downgrade_to_base_leaves_nothing_and_upgrade_comes_back(empty_database_url: str) -> None:
    migrate(settings_for(empty_database_url))
    unmigrate(settings_for(empty_database_url))
    assert tables(empty_database_url) == {"alembic_version"}
    migrate(settings_for(empty_database_url))
    assert tables(empty_database_url) >= {"jobs", "attempts", "job_events"}


def insert_as_version_0_1(url: str, job_id: str) -> None:
    """Writes a job down as the program before 0003 did, which knows nothing of the newer columns."""
    job = {
        "id": job_id, "name": job_id, "base_name": "n", "pipeline": "user-signin", "project": "p",
        "region": "r", "template_path": "gs://t", "state": "RUNNING", "requested_state": "RUNNING",
        "launch_token": "t", "parameters": "{}", "environment": "{}", "labels": "{}", "attempt": 1,
        "created_at": "2026-01-01 00:00:00+00:00", "missing_looks": 0, "version": 1,
    }  # fmt: skip
    attempt = {"job_id": job_id, "number": 1, "dataflow_job_id": job_id, "state": "RUNNING"}
    with migration_connection(settings_for(url)) as connection:
        for table, row in (("jobs", job), ("attempts", attempt | {"created_at": job["created_at"]})):
            names = ", ".join(row)
            values = ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)


async def test_a_replica_of_the_version_before_goes_on_while_0003_is_applied(empty_database_url: str) -> None:
    settings = settings_for(empty_database_url)
    await asyncio.to_thread(migrate, settings, "0002")
    await asyncio.to_thread(insert_as_version_0_1, empty_database_url, "before")
    await asyncio.to_thread(migrate, settings)
    await asyncio.to_thread(insert_as_version_0_1, empty_database_url, "after")
    database = Database(settings)
    try:
        async with database.session() as session:
            lineages = await job_store.active(session)
    finally:
        await database.close()
    assert [lineage.job.id for lineage in lineages] == ["after", "before"]
    for lineage in lineages:
        [attempt] = lineage.open
        assert (attempt.kind, attempt.parameters, attempt.missing_looks) == ("launch", None, 0)
        assert (lineage.job.restart_policy, lineage.job.on_drain_deadline) == ("never", "wait")
        assert (lineage.job.scaling_pending, lineage.job.adopted) == (False, False)
    await asyncio.to_thread(unmigrate, settings, "0002")
    with migration_connection(settings) as connection:
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar_one() == 2


def test_processes_that_migrate_at_the_same_time_wait_for_each_other(empty_database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate, [settings_for(empty_database_url)] * 4))
    assert tables(empty_database_url) >= {"jobs", "attempts", "job_events"}


def test_a_migration_that_fails_leaves_the_schema_as_it_was(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = tmp_path / "alembic"
    shutil.copytree(schema.scripts_directory(), scripts)
    newest = schema.revisions().newest
    (scripts / "versions" / "9999_breaks.py").write_text(
        "from alembic import op\n"
        f"revision, down_revision, branch_labels, depends_on = '9999', {newest!r}, None, None\n"
        "def upgrade():\n"
        "    op.execute('CREATE TABLE half (id INTEGER)')\n"
        "    raise RuntimeError('broken on purpose')\n"
    )
    migrate(settings_for(empty_database_url))
    before = tables(empty_database_url)
    monkeypatch.setattr(schema, "scripts_directory", lambda: scripts)
    schema.revisions.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="broken on purpose"):
            migrate(settings_for(empty_database_url))
    finally:
        schema.revisions.cache_clear()
    assert tables(empty_database_url) == before
    with migration_connection(settings_for(empty_database_url)) as connection:
        assert schema.applied_revisions(connection) == {newest}


async def test_the_database_knows_whether_its_schema_is_current(empty_database_url: str) -> None:
    database = Database(settings_for(empty_database_url))
    try:
        await database.ping()
        assert (await database.fit()).kind == "older"
        await asyncio.to_thread(migrate, settings_for(empty_database_url))
        assert (await database.fit()).kind == "current"
        await asyncio.to_thread(unmigrate, settings_for(empty_database_url))
        assert (await database.fit()).kind == "older"
    finally:
        await database.close()


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("postgresql://nobody@127.0.0.1:9/none", "OperationalError (no connection)"),
        ("sqlite:////proc", "OperationalError (SQLITE_CANTOPEN"),
    ],
)
async def test_a_database_that_is_away_is_told_as_unavailable_and_its_kind_of_failure_in_the_log(
    url: str, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(settings_for(url))
    try:
        with pytest.raises(DatabaseUnavailableError):
            await database.ping()
    finally:
        await database.close()
    assert f"the database cannot be used: {cause}" in caplog.text


async def test_a_missing_schema_is_told_as_unavailable(empty_database_url: str) -> None:
    database = Database(settings_for(empty_database_url))
    try:
        with pytest.raises(DatabaseUnavailableError):
            async with database.transaction() as session:
                await session.exec(text("SELECT id FROM jobs"))  # type: ignore[call-overload]
    finally:
        await database.close()


def test_migrating_says_where_it_makes_a_new_database(tmp_path: Path) -> None:
    path = tmp_path / "misspelled" / "signin.db"

    def said() -> str:
        done = CliRunner().invoke(app, ["migrate"], env={"SIGNIN_DATABASE_URL": f"sqlite:///{path}"})
        assert done.exit_code == 0
        return done.output

    assert f"There was no database at {path}: it is a new one." in said()
    assert str(path) not in said()


def test_the_migrations_run_from_an_installed_package_whose_path_has_a_percent_sign(tmp_path: Path) -> None:
    root = schema.scripts_directory().parent
    site = tmp_path / "100%site"
    shutil.copytree(root / "service", site / "service", ignore=shutil.ignore_patterns("__pycache__", "local"))
    shutil.copytree(root / "alembic", site / "service" / "alembic")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from service.db import migrate, schema; from service.config import Settings\n"
        "assert schema.__file__.startswith(sys.argv[1])\n"
        "assert schema.scripts_directory().parent.name == 'service'\n"
        "migrate(Settings(_env_file=None, data_dir='data'))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(site)], cwd=tmp_path, check=True, timeout=60)
    assert tables(f"sqlite:///{tmp_path / 'data' / 'signin.db'}") >= {"jobs", "attempts", "job_events"}
