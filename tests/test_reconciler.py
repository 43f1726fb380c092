"""What the reconciler makes of crashes, lost answers, outages and strangers, on both databases."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from service.dataflow import SeenJob
from service.errors import DatabaseUnavailableError
from service.local.faults import Fault
from service.models import Job
from tests.job_world import World, make_world, outage


async def launch_outside(world: World, name: str, token: str) -> SeenJob:
    """Launches a Dataflow job that the database knows nothing of."""
    job = Job(
        id="outside",
        name=name,
        base_name=name,
        pipeline="user-signin",
        project=world.settings.project,
        region=world.settings.region,
        template_path=world.settings.template_path,
        state="LAUNCHING",
        launch_token=token,
        created_at=world.clock(),
    )
    return await world.dataflow.launch(job)


def launches(world: World) -> int:
    return world.calls().get("LaunchFlexTemplate", 0)


async def test_a_job_whose_process_died_before_the_launch_is_launched_once(world: World) -> None:
    job = await world.insert()
    others = [world.another_reconciler() for _ in range(4)]
    await asyncio.gather(*(reconciler.tick() for reconciler in others))
    await world.until(job.id, "RUNNING")
    assert launches(world) == 1
    assert (await world.history(job.id)).count("launched") == 1


async def test_a_job_whose_process_died_during_the_launch_is_adopted(world: World) -> None:
    world.fail(Fault("LaunchFlexTemplate", delay_seconds=30, after=True))
    request = asyncio.create_task(world.http.post("/jobs", json={}))
    await world.until_dataflow_has_a_job()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    world.fail()
    [listed] = (await world.http.get("/jobs")).json()["jobs"]
    assert (listed["state"], listed["dataflow_job_id"]) == ("LAUNCHING", None)
    running = await world.until(listed["id"], "RUNNING")
    assert launches(world) == 1
    assert [running["dataflow_job_id"]] == list(world.server._fleet.jobs)


async def test_a_launch_that_never_arrived_is_made_again_under_the_same_name(world: World) -> None:
    world.fail(Fault("LaunchFlexTemplate", "UNAVAILABLE", times=1))
    job = await world.launch()
    for _ in range(3):
        await world.reconciler.tick()
    assert launches(world) == 1
    world.clock.advance(seconds=61)
    await world.reconciler.tick()
    assert launches(world) == 1
    await world.reconciler.tick()
    assert launches(world) == 2
    running = await world.until(job["id"], "RUNNING")
    assert running["name"] == job["name"]
    assert running["cause"] is None
    assert len(await world.dataflow_jobs(job["name"])) == 1


async def test_two_ticks_at_once_launch_again_only_once(world: World) -> None:
    world.fail(Fault("LaunchFlexTemplate", "UNAVAILABLE", times=1))
    job = await world.launch()
    world.clock.advance(seconds=61)
    for _ in range(3):
        await asyncio.gather(*(world.another_reconciler().tick() for _ in range(3)))
    await world.until(job["id"], "RUNNING")
    assert launches(world) == 2


async def test_a_list_that_fails_is_not_a_clean_look(world: World) -> None:
    world.fail(*outage())
    job = await world.launch()
    world.clock.advance(hours=1)
    for _ in range(5):
        assert not await world.reconciler.tick()
    assert (await world.entry(job["id"])).attempt.missing_looks == 0
    assert launches(world) == 1


async def test_a_job_of_the_same_name_that_is_not_ours_is_never_touched(world: World) -> None:
    stranger = await launch_outside(world, "night-0123456789", token="somebody-else")
    job = await world.insert(name="night-0123456789")
    await world.reconciler.tick()
    assert (await world.entry(job.id)).job.state == "LAUNCHING"
    world.clock.advance(seconds=61)
    rejected = await world.until(job.id, "REJECTED")
    assert stranger.id in rejected["cause"]
    assert rejected["dataflow_job_id"] is None
    assert "UpdateJob" not in world.calls()
    seen = await world.dataflow.get(world.settings.project, world.settings.region, stranger.id)
    assert seen.state in ("QUEUED", "PENDING", "RUNNING")


async def test_an_answer_that_the_name_is_taken_leads_to_our_own_job(world: World) -> None:
    token = "0123456789abcdef"
    ours = await launch_outside(world, "night-0123456789", token)
    job = await world.insert(name="night-0123456789", launch_token=token)
    running = await world.until(job.id, "RUNNING")
    assert running["dataflow_job_id"] == ours.id
    kinds = ["created", "launch_started", "launch_unanswered", "adopted"]
    assert (await world.history(job.id))[:4] == kinds
    assert len(await world.dataflow_jobs(job.name)) == 1


@pytest.mark.parametrize("action", ["drain", "cancel"])
async def test_a_job_that_is_not_wanted_any_more_is_not_launched_again(action: str, world: World) -> None:
    world.fail(Fault("LaunchFlexTemplate", "UNAVAILABLE", times=1))
    job = await world.launch()
    assert (await world.http.post(f"/jobs/{job['id']}/{action}")).status_code == 202
    world.clock.advance(seconds=61)
    await world.until(job["id"], "CANCELLED")
    assert launches(world) == 1


async def test_a_stop_before_the_launch_began_ends_the_job_at_once(world: World) -> None:
    job = await world.insert()
    answer = await world.http.post(f"/jobs/{job.id}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "CANCELLED")
    await world.reconciler.tick()
    assert launches(world) == 0


async def test_a_cancel_that_overtakes_the_launch_is_sent_when_the_answer_comes(world: World) -> None:
    world.fail(Fault("LaunchFlexTemplate", delay_seconds=0.5, after=True))
    request = asyncio.create_task(world.http.post("/jobs", json={}))
    await world.until_dataflow_has_a_job()
    [job] = (await world.http.get("/jobs")).json()["jobs"]
    assert (await world.http.post(f"/jobs/{job['id']}/cancel")).status_code == 202
    assert (await request).status_code == 202
    await world.until(job["id"], "CANCELLED")


async def test_quiet_jobs_cost_one_list_however_many_they_are(world: World) -> None:
    spent: list[dict[str, int]] = []
    for _ in range(3):
        job = await world.launch(shared_subscription=True)
        await world.until(job["id"], "RUNNING")
        before = world.calls()
        await world.reconciler.tick()
        spent.append(difference(before, world.calls()))
    assert spent == [{"ListJobs": 1}] * 3


async def test_a_tick_without_jobs_calls_nobody(world: World) -> None:
    assert await world.reconciler.tick()
    assert world.calls() == {}


async def test_a_job_that_dataflow_denies_is_lost_only_after_ten_minutes(world: World) -> None:
    job = await world.insert(state="RUNNING", dataflow_job_id="2026-01-01_00_00_00-1")
    await world.reconciler.tick()
    world.clock.advance(minutes=9)
    await world.reconciler.tick()
    assert (await world.entry(job.id)).job.state == "RUNNING"
    world.clock.advance(minutes=2)
    await world.reconciler.tick()
    lost = await world.show(job.id)
    assert (lost["state"], lost["active"]) == ("LOST", False)
    assert await world.history(job.id) == ["created", "denied", "RUNNING>LOST"]


async def test_a_job_that_is_seen_again_begins_its_ten_minutes_anew(world: World) -> None:
    job = await world.launch()
    await world.until(job["id"], "RUNNING")
    [own] = world.server._fleet.jobs
    kept = world.server._fleet.jobs.pop(own)
    await world.reconciler.tick()
    assert (await world.entry(job["id"])).attempt.missing_looks == 1
    world.server._fleet.jobs[own] = kept
    await world.reconciler.tick()
    row = (await world.entry(job["id"])).attempt
    assert (row.missing_looks, row.missing_since) == (0, None)
    world.clock.advance(minutes=11)
    await world.reconciler.tick()
    assert (await world.entry(job["id"])).job.state == "RUNNING"


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL", "PERMISSION_DENIED"])
async def test_an_outage_changes_nothing_and_the_next_answer_ends_it(code: str, world: World) -> None:
    job = await world.launch()
    await world.until(job["id"], "RUNNING")
    before = (await world.entry(job["id"])).job
    world.fail(*outage(code=code))
    for _ in range(3):
        assert not await world.reconciler.tick()
    assert (await world.entry(job["id"])).job == before
    world.fail()
    world.clock.advance(minutes=2)  # until then Dataflow is left alone
    assert await world.reconciler.tick()
    after = (await world.entry(job["id"])).job
    assert after.state == "RUNNING"
    assert after.observed_at > before.observed_at


async def test_an_observation_that_is_old_is_called_stale(world: World) -> None:
    at = world.clock()
    job = await world.insert(state="RUNNING", observed_at=at, dataflow_job_id="x")
    ended = await world.insert(state="DRAINED", observed_at=at, ended_at=at)
    world.clock.advance(minutes=5)
    assert (await world.show(job.id))["stale"]
    assert not (await world.show(ended.id))["stale"]


async def test_a_job_that_fails_says_why(world: World) -> None:
    job = await world.launch(parameters={"break_with": "the table is gone"})
    failed = await world.until(job["id"], "FAILED")
    assert "the table is gone" in failed["cause"]
    assert failed["attempts"][0]["error"] == failed["cause"]


async def test_many_loops_at_once_write_one_history(world: World) -> None:
    job = await world.launch()
    loops = [asyncio.create_task(world.another_reconciler().run()) for _ in range(4)]
    try:
        await world.until(job["id"], "RUNNING")
        await world.http.post(f"/jobs/{job['id']}/drain")
        await world.until(job["id"], "DRAINED")
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
    moves = [kind for kind in await world.history(job["id"]) if ">" in kind]
    assert moves[0].startswith("LAUNCHING>")
    assert moves[-1].endswith(">DRAINED")
    assert len(moves) == len(set(moves))
    for earlier, later in itertools.pairwise(moves):
        assert earlier.split(">")[1] == later.split(">")[0]


async def test_the_loop_comes_at_once_when_it_is_woken(tmp_path: Path, database_url: str) -> None:
    async with make_world(tmp_path, database_url, reconcile_interval_seconds=3600) as world:
        loop = asyncio.create_task(world.reconciler.run())
        try:
            await world.launch()
            await happens(world, "RUNNING")
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)


async def test_the_loop_survives_a_bug_and_a_database_that_is_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = iter([RuntimeError("a bug"), DatabaseUnavailableError("away")])
    tick = world.reconciler.tick

    async def sometimes() -> bool:
        if error := next(broken, None):
            raise error
        return await tick()

    monkeypatch.setattr(world.reconciler, "tick", sometimes)
    loop = asyncio.create_task(world.reconciler.run())
    try:
        await world.launch()
        await happens(world, "RUNNING")
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


async def happens(world: World, state: str) -> None:
    """Waits, without ticking, until the only job is in `state`."""
    async with asyncio.timeout(15):
        while True:
            [job] = (await world.http.get("/jobs")).json()["jobs"]
            if job["state"] == state:
                return
            world.reconciler.wake()
            await asyncio.sleep(0.05)


def difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {
        name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)
    }
