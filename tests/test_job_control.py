"""Restarts, the stop ladder, bounds of workers and takeovers, against the local Dataflow."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.dataflow import Launch
from service.errors import ActionNotAllowedError, AlreadyManagedError, InvalidRequestError
from service.local.faults import Fault
from tests.job_attempts import ON_EACH_DATABASE, STRANGER, running, until_attempt, update_of
from tests.job_world import TEMPLATE, World

pytestmark = ON_EACH_DATABASE


async def test_a_failed_job_is_launched_again_as_often_as_its_policy_says(world: World) -> None:
    body = {"parameters": {"break_with": "the table is gone"}}
    job = await world.launch(**body, restart_policy="on-failure", restart_limit=2)
    for restarts in (1, 2):
        async with asyncio.timeout(15):
            while (await world.entry(job["id"])).job.restarts < restarts:
                await world.reconciler.tick()
                await asyncio.sleep(0.02)
        before = world.calls()["LaunchFlexTemplate"]
        waiting = await world.show(job["id"])
        assert (waiting["state"], waiting["active"]) == ("LAUNCHING", True)
        assert "the table is gone" in waiting["cause"]
        await world.reconciler.tick()
        assert world.calls()["LaunchFlexTemplate"] == before  # not before its pause is over
        world.clock.advance(minutes=2)
    failed = await world.until(job["id"], "FAILED")
    assert [each["state"] for each in failed["attempts"]] == ["FAILED"] * 3
    names = {local.proto.name for local in world.server._fleet.jobs.values()}
    assert names == {job["name"], f"{job['name']}-2", f"{job['name']}-3"}


async def test_a_failed_job_is_not_launched_again_unless_that_was_asked_for(world: World) -> None:
    job = await world.launch(parameters={"break_with": "the table is gone"})
    await world.until(job["id"], "FAILED")
    assert world.calls()["LaunchFlexTemplate"] == 1


async def test_a_job_that_waits_for_its_restart_can_be_cancelled(world: World) -> None:
    body = {"parameters": {"break_with": "the table is gone"}, "restart_policy": "on-failure"}
    job = await world.launch(**body)
    async with asyncio.timeout(15):
        while not (await world.entry(job["id"])).job.restarts:
            await world.reconciler.tick()
            await asyncio.sleep(0.02)
    await world.reconciler.control.stop(job["id"], "cancel", "test")
    world.clock.advance(hours=1)
    await world.reconciler.tick()
    assert (await world.entry(job["id"])).job.state == "CANCELLED"
    assert world.calls()["LaunchFlexTemplate"] == 1


@pytest.mark.parametrize(("policy", "state"), [("cancel", "CANCELLED"), ("wait", "DRAINING")])
async def test_a_drain_that_is_overdue_does_what_its_policy_says(
    policy: Any, state: str, world: World
) -> None:
    job = await running(world)
    [local] = world.server._fleet.active()
    world.server._fleet._workers[local.id].stop = lambda *_: None  # a worker that does not finish
    await world.reconciler.control.stop(job["id"], "drain", "test", deadline_seconds=600, on_deadline=policy)
    await world.until(job["id"], "DRAINING")
    world.clock.advance(seconds=540)
    await world.reconciler.tick()
    assert "drain_deadline_passed" not in await world.history(job["id"])
    world.clock.advance(seconds=61)
    for _ in range(3):
        await world.reconciler.tick()
    assert (await world.history(job["id"])).count("drain_deadline_passed") == 1
    row = (await world.entry(job["id"])).job
    assert row.requested_state == ("CANCELLED" if policy == "cancel" else "DRAINED")
    del world.server._fleet._workers[local.id].stop
    world.server._fleet._workers[local.id].kill("the test is over")
    if policy == "cancel":
        await world.until(job["id"], state)


async def test_a_drains_deadline_can_be_given_later(world: World) -> None:
    job = await world.insert()
    control = world.reconciler.control
    world.fail(Fault("LaunchFlexTemplate", "UNAVAILABLE"))
    await control.launch(job)
    assert await control.stop(job.id, "drain", "test")
    assert not await control.stop(job.id, "drain", "test", deadline_seconds=60, on_deadline="cancel")
    row = (await world.entry(job.id)).job
    assert (row.drain_deadline_seconds, row.on_drain_deadline) == (60, "cancel")
    assert "drain_deadline_set" in await world.history(job.id)


async def test_force_is_only_for_a_cancel_that_hangs(world: World) -> None:
    job = await running(world)
    [local] = world.server._fleet.active()
    worker = world.server._fleet._workers[local.id]
    worker.stop = lambda *_: None  # a worker that does not hear
    control = world.reconciler.control
    with pytest.raises(ActionNotAllowedError):
        await control.force_cancel(job["id"], "test")
    await control.stop(job["id"], "cancel", "test")
    world.clock.advance(minutes=29)
    await world.until(job["id"], "CANCELLING")
    with pytest.raises(ActionNotAllowedError):
        await control.force_cancel(job["id"], "test")
    world.clock.advance(minutes=1)
    assert await control.force_cancel(job["id"], "test")
    assert not await control.force_cancel(job["id"], "test")
    await world.until(job["id"], "CANCELLED")
    assert "cancelled by force" in " ".join(message.text for message in local.messages)


async def test_a_cancel_that_is_refused_because_it_is_too_early_is_sent_again(world: World) -> None:
    job = await running(world)
    world.fail(Fault("UpdateJob", "FAILED_PRECONDITION", times=2))
    await world.reconciler.control.stop(job["id"], "cancel", "test")
    await world.until(job["id"], "CANCELLED")
    assert world.calls()["UpdateJob"] == 3


async def test_bounds_of_workers_are_told_when_the_job_runs_and_again_to_what_replaces_it(
    world: World, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    job = await world.launch(parameters={"gate": str(gate)})
    control = world.reconciler.control
    assert await control.scale(job["id"], 2, 7, "test") is None
    await world.reconciler.tick()
    assert "UpdateJob" not in world.calls()
    gate.touch()
    await world.until(job["id"], "RUNNING")
    await world.reconciler.tick()
    await control.scale(job["id"], None, 9, "test")
    assert await bounds(world, job["id"]) == (2, 9)
    await control.update(job["id"], await update_of(world, job["id"]), "test")
    await until_attempt(world, job["id"], 2)
    await world.reconciler.tick()
    assert await bounds(world, job["id"]) == (2, 9)
    with pytest.raises(InvalidRequestError):
        await control.scale(job["id"], 10, None, "test")


async def bounds(world: World, job_id: str) -> tuple[int | None, int | None]:
    """What Dataflow shows of the job that stands for ours."""
    entry = await world.entry(job_id)
    assert not entry.job.scaling_pending
    seen = await world.dataflow.get(entry.job.project, entry.job.region, entry.attempt.dataflow_job_id or "")
    return seen.min_workers, seen.max_workers


async def test_bounds_that_dataflow_refuses_are_not_told_for_ever(world: World) -> None:
    job = await running(world)
    world.fail(Fault("UpdateJob", "INVALID_ARGUMENT"))
    assert await world.reconciler.control.scale(job["id"], 1, 2, "test")
    calls = world.calls()["UpdateJob"]
    await world.reconciler.tick()
    assert world.calls()["UpdateJob"] == calls
    assert "scale_refused" in await world.history(job["id"])


async def test_a_job_of_somebody_else_can_be_taken_over_once(world: World) -> None:
    wanted = Launch(world.settings.project, world.settings.region, "theirs", TEMPLATE, STRANGER)
    seen = await world.dataflow.launch(wanted)
    control, place = world.reconciler.control, (world.settings.project, world.settings.region)
    outcomes = await asyncio.gather(
        *(control.adopt(*place, seen.id, "test") for _ in range(3)), return_exceptions=True
    )
    [job_id] = [each for each in outcomes if isinstance(each, str)]
    assert [type(each) for each in outcomes].count(AlreadyManagedError) == 2
    running_job = await world.until(job_id, "RUNNING")
    assert (running_job["name"], running_job["dataflow_job_id"]) == ("theirs", seen.id)
    await control.stop(job_id, "drain", "test")
    await world.until(job_id, "DRAINED")
    with pytest.raises((ActionNotAllowedError, AlreadyManagedError)):
        await control.adopt(*place, seen.id, "test")
