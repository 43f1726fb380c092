"""What the tables keep and refuse, on both databases."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, StatementError
from sqlmodel import col, select

from service import job_store
from service.db import Database
from service.job_control import settling
from service.job_state import observe
from service.models import Attempt, Job, new_id

NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def job(**columns: Any) -> Job:
    at = columns.pop("created_at", NOON)
    job_id = new_id(at)
    values: dict[str, Any] = {
        "id": job_id,
        "name": f"job-{job_id[-10:]}",
        "base_name": "job",
        "pipeline": "user-signin",
        "project": "signin-local",
        "region": "us-central1",
        "template_path": "gs://t/t.json",
        "state": "LAUNCHING",
        "launch_token": "token",
        "created_at": at,
    }
    return Job(**(values | columns))


async def stored(database: Database, *jobs: Job) -> None:
    async with database.transaction() as session:
        for each in jobs:
            await job_store.insert(session, each, "test")


async def test_times_come_back_in_utc_whatever_zone_they_had(database: Database) -> None:
    at = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    made = job(created_at=at)
    await stored(database, made)
    async with database.session() as session:
        [found] = (await session.exec(select(Job))).all()
    assert found.created_at == NOON
    assert found.created_at.utcoffset() == timedelta(0)
    assert found.parameters == {}


async def test_a_time_without_a_zone_is_refused(database: Database) -> None:
    made = job(ended_at=NOON.replace(tzinfo=None))
    with pytest.raises(StatementError, match="no time zone"):
        await stored(database, made)


async def test_a_name_is_never_used_twice_not_even_after_its_job_has_ended(database: Database) -> None:
    await stored(database, job(name="one", ended_at=NOON))
    with pytest.raises(IntegrityError):
        await stored(database, job(name="one"))


async def test_two_active_jobs_on_one_subscription_are_refused(database: Database) -> None:
    await stored(database, job(exclusive_subscription="s", ended_at=NOON), job(exclusive_subscription="s"))
    await stored(database, job(subscription="s"), job(subscription="s"))
    with pytest.raises(IntegrityError):
        await stored(database, job(exclusive_subscription="s"))


async def test_one_dataflow_job_belongs_to_one_attempt(database: Database) -> None:
    first, second = job(), job()
    await stored(database, first, second)

    async def give_both_the_same() -> None:
        async with database.transaction() as session:
            for attempt in (await session.exec(select(Attempt))).all():
                attempt.dataflow_job_id = "the same"

    with pytest.raises(IntegrityError):
        await give_both_the_same()


async def test_a_requested_state_that_nobody_knows_is_refused(database: Database) -> None:
    with pytest.raises(IntegrityError):
        await stored(database, job(requested_state="PAUSED"))


async def test_an_error_of_the_database_does_not_repeat_the_values(
    database: Database,
) -> None:
    with pytest.raises(StatementError) as caught:
        await stored(database, job(requested_state="PAUSED", parameters={"key": "hidden-1"}))
    assert "hidden-1" not in str(caught.value).partition("DETAIL")[0]


async def test_history_needs_its_job(database: Database) -> None:
    with pytest.raises(IntegrityError):
        async with database.transaction() as session:
            session.add(Attempt(job_id="nobody", number=1, state="LAUNCHING", created_at=NOON))


async def test_what_a_block_wrote_before_it_raised_is_gone(database: Database) -> None:
    async def write_and_raise() -> None:
        async with database.transaction() as session:
            await job_store.insert(session, job(), "test")
            raise LookupError

    with pytest.raises(LookupError):
        await write_and_raise()
    async with database.session() as session:
        assert (await session.exec(select(Job))).all() == []


async def test_many_writers_at_once_queue_and_none_fails(database: Database) -> None:
    made = job()
    await stored(database, made)

    async def count() -> None:
        async with database.transaction() as session:
            entry = await job_store.lock(session, made.id)
            assert entry
            before = entry.job.missing_looks
            await asyncio.sleep(0)
            entry.job.missing_looks = before + 1

    await asyncio.gather(*(count() for _ in range(30)))
    async with database.session() as session:
        assert (await session.exec(select(col(Job.missing_looks)))).one() == 30


async def test_who_has_read_an_older_version_gets_no_lock(database: Database) -> None:
    made = job()
    await stored(database, made)
    async with database.transaction() as session:
        entry = await job_store.lock(session, made.id, 1)
        assert entry
        settling.see(session, entry, entry.attempt, observe("LAUNCHING", "RUNNING", "RUNNING"), NOON, None)
    async with database.transaction() as session:
        assert await job_store.lock(session, made.id, 1) is None
        assert await job_store.lock(session, made.id, 2)


async def test_seeing_a_job_unchanged_moves_its_time_forward_only(database: Database) -> None:
    made, ended = job(), job(ended_at=NOON)
    await stored(database, made, ended)
    for minutes in (5, 3):
        async with database.transaction() as session:
            await job_store.touch(session, [made.id, ended.id], NOON + timedelta(minutes=minutes))
    async with database.session() as session:
        found = await job_store.find(session, made.id)
        untouched = await job_store.find(session, ended.id)
    assert found
    assert untouched
    assert (found.job.observed_at, found.job.version) == (NOON + timedelta(minutes=5), 1)
    assert untouched.job.observed_at is None


def test_ids_are_unique_and_in_the_order_of_time() -> None:
    ids = [new_id(NOON + timedelta(milliseconds=index)) for index in range(1000)]
    assert ids == sorted(set(ids))
    assert {len(each) for each in ids} == {20}


async def test_who_waited_for_a_job_sees_all_that_the_other_committed(
    database: Database, database_url: str
) -> None:
    row = job()
    async with database.transaction() as session:
        await job_store.insert(session, row, "test")
    locked = asyncio.Event()

    async def somebody_waits() -> bool:
        if database_url.startswith("sqlite"):
            return True  # there the other waits at BEGIN, before it reads anything
        waiting = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        async with database.session() as session:
            return (await session.exec(text(waiting))).scalar_one() > 0

    async def launch() -> None:
        async with database.transaction() as session:
            entry = await job_store.lock(session, row.id)
            locked.set()
            while not await somebody_waits():  # noqa: ASYNC110 - only the database knows
                await asyncio.sleep(0.01)
            entry.attempt.dataflow_job_id = "dataflow-1"
            job_store.record(session, entry.job, NOON, "launched", {})

    async def look() -> tuple[int, str | None]:
        await locked.wait()
        async with database.transaction() as session:
            entry = await job_store.lock(session, row.id)
            return entry.job.version, entry.attempt.dataflow_job_id

    _, seen = await asyncio.gather(launch(), look())
    assert seen == (2, "dataflow-1")
