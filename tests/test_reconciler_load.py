"""How much the reconciler asks of Dataflow: many jobs, storms, a budget, one replica at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy.exc
from sqlalchemy import Connection, event

from service import job_store
from service.errors import DatabaseUnavailableError
from service.job_bodies import NewJob
from service.job_request import new_job
from service.lease import Lease
from service.local.faults import Fault
from service.reconciler import LEASE, Reconciler
from tests.job_world import World, make_world, outage

INTERVAL_SECONDS = 5


@pytest.fixture
async def patient(tmp_path: Path, database_url: str) -> AsyncIterator[World]:
    """A world that looks every five seconds of its own clock."""
    async with make_world(tmp_path, database_url, reconcile_interval_seconds=INTERVAL_SECONDS) as world:
        yield world


async def running(world: World, **body: Any) -> str:
    job = await world.launch(**body)
    return (await world.until(job["id"], "RUNNING"))["id"]


async def copies(world: World, job_id: str, count: int, **columns: Any) -> list[str]:
    """Rows of jobs like this one, each with a Dataflow job of its own that is not really there."""
    now, made = world.clock(), []
    async with world.database.transaction() as session:
        for number in range(count):
            row = new_job(NewJob(shared_subscription=True), world.settings, now)
            row.state = "RUNNING"
            for name, value in columns.items():
                setattr(row, name, value)
            session.add(row)
            await session.flush()
            attempt = job_store.first_attempt(row)
            attempt.dataflow_job_id = f"{job_id}-{number}"
            session.add(attempt)
            made.append(row.id)
    return made


async def calls_of_a_tick(world: World) -> dict[str, int]:
    before = world.calls()
    await world.reconciler.tick()
    after = world.calls()
    return {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}


async def test_a_thousand_quiet_jobs_cost_as_many_calls_as_one(
    world: World,
) -> None:
    job_id = await running(world)
    alone = await calls_of_a_tick(world)
    [local] = world.server._fleet.active()
    made = await copies(world, job_id, 999)
    for number in range(999):  # the same job under other ids, so that no processes are needed
        twin = type(local)(local.number + 1 + number, type(local.proto)(), local.launch)
        twin.proto.CopyFrom(local.proto)
        twin.proto.id, twin.proto.name = f"{job_id}-{number}", f"twin-{number}"
        world.server._fleet.jobs[twin.id] = twin
    assert await world.reconciler.tick()
    many = await calls_of_a_tick(world)
    assert alone == many == {"ListJobs": 1}
    assert (await world.entry(made[0])).job.observed_at is not None
    for number in range(999):
        del world.server._fleet.jobs[f"{job_id}-{number}"]


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "UNAVAILABLE"])
async def test_a_storm_of_ten_minutes_leaves_every_state_right(code: str, patient: World) -> None:
    job_id = await running(patient)
    before = (await patient.entry(job_id)).job
    calls = sum(patient.calls().values())
    patient.fail(*outage(code=code))
    answer = await patient.http.post(f"/jobs/{job_id}/drain")
    assert (answer.status_code, answer.json()["state"]) == (202, "RUNNING")
    for _ in range(10 * 60 // INTERVAL_SECONDS):
        patient.clock.advance(seconds=INTERVAL_SECONDS)
        assert not await patient.reconciler.tick()
    shown = await patient.show(job_id)
    assert (shown["state"], shown["requested_state"], shown["stale"]) == ("RUNNING", "DRAINED", True)
    assert (await patient.entry(job_id)).job.observed_at == before.observed_at
    spent = sum(patient.calls().values()) - calls
    assert spent < 30, "the calls do not back off"  # 120 ticks; a minute between two tries at most
    patient.fail()
    for _ in range(75 // INTERVAL_SECONDS):  # a minute and its spread
        patient.clock.advance(seconds=INTERVAL_SECONDS)
        await patient.reconciler.tick()
    await patient.until(job_id, "DRAINED")


async def test_a_budget_gives_every_job_its_turn(tmp_path: Path, database_url: str) -> None:
    async with make_world(tmp_path, database_url, reconcile_max_calls=6) as world:
        made = set(await copies(world, "gone", 10))  # Dataflow denies them: each costs two calls
        looked: set[str] = set()
        for _ in range(5):
            before = sum(world.calls().values())
            await world.reconciler.tick()
            assert sum(world.calls().values()) - before <= 6 + 1
            for job_id in made:
                if (await world.entry(job_id)).attempt.missing_looks:
                    looked.add(job_id)
        assert looked == made


async def test_a_region_that_is_away_does_not_hold_up_the_others(world: World) -> None:
    job_id = await running(world)
    await copies(world, "far", 1, region="europe-west1")
    world.fail(Fault("GetJob", "UNAVAILABLE"))
    seen_at = (await world.entry(job_id)).job.observed_at
    for _ in range(3):
        assert not await world.reconciler.tick()
    after = (await world.entry(job_id)).job.observed_at
    assert seen_at
    assert after
    assert after > seen_at


async def test_an_ended_job_is_never_asked_for_again(world: World) -> None:
    job_id = await running(world)
    await world.http.post(f"/jobs/{job_id}/cancel")
    await world.until(job_id, "CANCELLED")
    world.server._fleet.jobs.clear()  # as Dataflow forgets after 30 days
    world.clock.advance(days=60)
    assert await calls_of_a_tick(world) == {}
    shown = await world.show(job_id)
    assert (shown["state"], shown["active"]) == ("CANCELLED", False)


async def test_one_replica_at_a_time_looks(world: World) -> None:
    await running(world)
    first, second = world.another_reconciler(), world.another_reconciler()
    assert await first.tick_alone()
    before = world.calls()
    assert not await second.tick_alone()
    assert world.calls() == before
    world.clock.advance(seconds=world.settings.reconcile_lease_seconds + 1)  # the first one is dead
    assert await second.tick_alone()
    assert first.lease.token
    assert second.lease.token == first.lease.token + 1


async def test_a_replica_that_ends_gives_the_lease_free_at_once(world: World) -> None:
    first, second = world.another_reconciler(), world.another_reconciler()
    loop = asyncio.create_task(first.run())
    async with asyncio.timeout(10):
        while first.lease.token is None:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
    assert not await second.tick_alone()
    loop.cancel()
    await asyncio.wait([loop])
    assert await second.tick_alone()


def lease(world: World, seconds: float = 15.0) -> Lease:
    return Lease(world.database, "a piece of work", seconds, world.clock)


async def test_of_many_only_one_takes_a_lease(world: World) -> None:
    leases = [lease(world) for _ in range(8)]
    assert sum(await asyncio.gather(*(each.take() for each in leases))) == 1
    [holder] = [each for each in leases if each.token]
    token = holder.token
    assert await holder.take()
    assert holder.token == token, "who renews keeps the token"


async def test_a_lease_whose_commit_failed_is_not_held(world: World) -> None:
    before, lost, other = lease(world), lease(world), lease(world)
    assert await before.take()
    world.clock.advance(seconds=16)
    engine = world.database._writing_engine.sync_engine
    event.listen(engine, "commit", fail_to_commit)
    with pytest.raises(DatabaseUnavailableError):
        await lost.take()
    event.remove(engine, "commit", fail_to_commit)
    assert await other.take(), "under the number that the other one did not get"
    assert not await lost.take()
    assert (lost.is_held, other.is_held) == (False, True)
    async with world.database.transaction() as session:
        assert not await lost.holds(session)
    await lost.release()
    assert not await lost.take()


def fail_to_commit(_: Connection) -> None:
    raise sqlalchemy.exc.OperationalError("COMMIT", {}, Exception("the connection was lost"))


async def test_who_was_overtaken_learns_it_from_the_token(world: World) -> None:
    old, new = lease(world), lease(world)
    assert await old.take()
    world.clock.advance(seconds=16)
    assert await new.take()
    async with world.database.transaction() as session:
        assert not await old.holds(session)
        assert await new.holds(session)
    await old.release()
    assert not await old.take()
    assert await new.take()


async def test_a_lease_is_renewed_while_it_is_kept(world: World) -> None:
    long, other = lease(world, 3.0), lease(world, 3.0)
    assert await long.take()
    async with long.kept():
        for _ in range(4):
            await asyncio.sleep(1.0)  # four of them are longer than the lease: it does not end
            assert not await other.take()
    world.clock.advance(seconds=4)
    assert await other.take()


async def test_the_lease_is_kept_between_looks_that_are_further_apart(world: World) -> None:
    values = {"reconcile_interval_seconds": 3600.0, "reconcile_lease_seconds": 1.0}
    reconciler = Reconciler(world.database, world.dataflow, world.settings.model_copy(update=values))

    async def expires_at() -> datetime:
        async with world.database.session() as session:
            row = await reconciler.lease.row(session)
        return row.expires_at if row else datetime.min.replace(tzinfo=UTC)

    loop = asyncio.create_task(reconciler.run())
    async with asyncio.timeout(30):
        while (tick := reconciler.last_tick) is None:  # noqa: ASYNC110 - a look has no event
            await asyncio.sleep(0.02)
        while await expires_at() < tick.ended_at + timedelta(seconds=3):  # noqa: ASYNC110 - nor has a row
            await asyncio.sleep(0.02)
    assert reconciler.lease.is_held
    assert reconciler.last_tick is tick
    loop.cancel()
    await asyncio.wait([loop])
    assert await Lease(world.database, LEASE, 1.0).take()  # it was given free


async def test_an_overtaken_replica_does_not_set_the_clock_of_a_job_back(world: World) -> None:
    job_id = await running(world)
    old = world.another_reconciler()
    assert await old.lease.take()
    world.clock.advance(seconds=60)
    assert await world.reconciler.tick_alone()
    seen_at = (await world.entry(job_id)).job.observed_at
    assert seen_at
    await old.tick()
    assert (await world.entry(job_id)).job.observed_at == seen_at


async def test_a_job_that_is_seen_is_not_stale_though_its_stop_is_refused(patient: World) -> None:
    job_id = await running(patient)
    patient.fail(Fault("UpdateJob", "FAILED_PRECONDITION"))
    await patient.http.post(f"/jobs/{job_id}/cancel")
    for _ in range(12):
        patient.clock.advance(seconds=INTERVAL_SECONDS)
        await patient.reconciler.tick()
    shown = await patient.show(job_id)
    assert (shown["state"], shown["requested_state"], shown["stale"]) == ("RUNNING", "CANCELLED", False)
