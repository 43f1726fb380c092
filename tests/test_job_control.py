"""Updates, restarts, the stop ladder, bounds of workers and takeovers, against the local Dataflow."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.dataflow import Launch
from service.errors import ActionNotAllowedError, AlreadyManagedError, InvalidRequestError
from service.job_control import UpdateRequest
from service.job_state import WAITING_STATES
from service.local.faults import Fault
from tests.job_world import TEMPLATE, World

# Each of them waits for processes. On PostgreSQL they run with `-m soak`.
pytestmark = pytest.mark.parametrize(
    "create_database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)], indirect=True
)

STRANGER = "somebody-else"


async def running(world: World, **body: Any) -> dict[str, Any]:
    return await world.until((await world.launch(**body))["id"], "RUNNING")


async def update_of(world: World, job_id: str, **parameters: str) -> UpdateRequest:
    """What an update asks for: the job as it is, with other parameters."""
    job = (await world.entry(job_id)).job
    return UpdateRequest(TEMPLATE, {**job.parameters, **parameters}, job.environment, job.attempt)


async def until_attempt(world: World, job_id: str, number: int) -> dict[str, Any]:
    """Ticks until the attempt of this number stands for the job and works, and all others have ended."""
    async with asyncio.timeout(15):
        while True:
            await world.reconciler.tick()
            job = await world.show(job_id)
            others = [each for each in job["attempts"] if each["number"] != number]
            stands = (await world.entry(job_id)).job.attempt == number
            # The old one may be seen UPDATED while the word of the new one is still that it will run.
            works = job["state"] not in WAITING_STATES
            if stands and works and all(each["ended_at"] for each in others):
                return job
            await asyncio.sleep(0.02)


def living(world: World) -> list[str]:
    return [job.id for job in world.server._fleet.active()]


async def replaced_by_a_stranger(world: World, job: dict[str, Any]) -> str:
    """Updates the job with another tool, which knows nothing of this service."""
    wanted = Launch(job["project"], job["region"], job["name"], TEMPLATE, STRANGER)
    return (await world.dataflow.launch(wanted, update=True)).id


async def test_an_update_leads_to_a_new_attempt_of_the_same_job(world: World) -> None:
    job = await running(world)
    assert not await world.reconciler.control.update(job["id"], await update_of(world, job["id"]), "test")
    after = await until_attempt(world, job["id"], 2)
    assert (after["id"], after["name"], after["state"]) == (job["id"], job["name"], "RUNNING")
    old, new = after["attempts"]
    assert (old["state"], old["dataflow_job_id"]) == ("UPDATED", job["dataflow_job_id"])
    assert living(world) == [new["dataflow_job_id"]] == [after["dataflow_job_id"]]
    kinds = await world.history(job["id"])
    assert kinds.index("update_requested") < kinds.index("replaced")
    assert (await world.entry(job["id"])).job.pending_attempt is None


async def test_an_update_that_fails_leaves_the_old_one_running_and_says_why(world: World) -> None:
    job = await running(world)
    asked = await update_of(world, job["id"], break_with="the new version is broken")
    await world.reconciler.control.update(job["id"], asked, "test")
    assert (await world.entry(job["id"])).job.pending_attempt == 2
    after = await until_attempt(world, job["id"], 1)
    assert (after["state"], after["dataflow_job_id"]) == ("RUNNING", job["dataflow_job_id"])
    assert "the new version is broken" in after["cause"]
    assert after["attempts"][1]["state"] == "FAILED"
    assert "break_with" not in after["parameters"]
    assert living(world) == [job["dataflow_job_id"]]
    assert "update_failed" in await world.history(job["id"])
    await world.reconciler.control.update(job["id"], await update_of(world, job["id"]), "test")
    assert (await until_attempt(world, job["id"], 3))["state"] == "RUNNING"


async def test_an_update_that_dataflow_refuses_ends_at_once(world: World) -> None:
    job = await running(world)
    world.fail(Fault("LaunchFlexTemplate", "INVALID_ARGUMENT", times=1))
    refusal = await world.reconciler.control.update(job["id"], await update_of(world, job["id"]), "test")
    assert refusal
    assert refusal.status == "INVALID_ARGUMENT"
    after = await world.show(job["id"])
    assert (after["state"], after["attempts"][1]["state"]) == ("RUNNING", "REJECTED")
    assert living(world) == [job["dataflow_job_id"]]


async def test_an_update_is_not_launched_where_dataflow_has_no_running_job(world: World) -> None:
    job = await running(world)
    [local] = world.server._fleet.active()
    world.server._fleet.drain(local)  # somebody else did it, and no tick has seen it yet
    asked = await update_of(world, job["id"])
    refusal = await world.reconciler.control.update(job["id"], asked, "test")
    assert refusal
    assert world.calls()["LaunchFlexTemplate"] == 1
    assert (await world.until(job["id"], "DRAINED"))["attempts"][1]["state"] == "REJECTED"


async def test_the_lost_answer_of_an_update_is_found_by_its_token(world: World) -> None:
    job = await running(world)
    world.fail(Fault("LaunchFlexTemplate", "UNAVAILABLE", times=1, after=True))
    await world.reconciler.control.update(job["id"], await update_of(world, job["id"]), "test")
    after = await until_attempt(world, job["id"], 2)
    assert world.calls()["LaunchFlexTemplate"] == 2
    assert living(world) == [after["dataflow_job_id"]]


async def test_an_update_that_never_arrived_is_made_again(world: World) -> None:
    job = await running(world)
    world.fail(Fault("LaunchFlexTemplate", "UNAVAILABLE", times=1))
    await world.reconciler.control.update(job["id"], await update_of(world, job["id"]), "test")
    world.clock.advance(seconds=61)
    await until_attempt(world, job["id"], 2)
    assert world.calls()["LaunchFlexTemplate"] == 3
    assert len(living(world)) == 1


async def test_only_one_of_two_updates_at_once_is_made(world: World) -> None:
    job = await running(world)
    asked = await update_of(world, job["id"])
    controls = [world.another_reconciler().control for _ in range(2)]
    outcomes = await asyncio.gather(
        *(control.update(job["id"], asked, "test") for control in controls), return_exceptions=True
    )
    assert [type(each) for each in outcomes if each] == [ActionNotAllowedError]
    await until_attempt(world, job["id"], 2)
    with pytest.raises(ActionNotAllowedError):  # made over the values that were replaced meanwhile
        await controls[0].update(job["id"], asked, "test")


async def test_an_update_cannot_read_from_elsewhere(world: World) -> None:
    job = await running(world)
    asked = await update_of(world, job["id"], input_subscription="projects/p/subscriptions/other")
    with pytest.raises(InvalidRequestError, match="input_subscription"):
        await world.reconciler.control.update(job["id"], asked, "test")


async def test_a_cancel_during_an_update_ends_both(world: World, tmp_path: Path) -> None:
    job = await running(world)
    asked = await update_of(world, job["id"], gate=str(tmp_path / "never"))
    await world.reconciler.control.update(job["id"], asked, "test")
    assert len(living(world)) == 2
    await world.reconciler.control.stop(job["id"], "cancel", "test")
    after = await world.until(job["id"], "CANCELLED")
    assert living(world) == []
    assert all(attempt["ended_at"] for attempt in after["attempts"])


async def test_a_drain_during_an_update_waits_for_its_outcome(world: World, tmp_path: Path) -> None:
    job = await running(world)
    gate = tmp_path / "gate"
    await world.reconciler.control.update(
        job["id"], await update_of(world, job["id"], gate=str(gate)), "test"
    )
    await world.reconciler.control.stop(job["id"], "drain", "test")
    await world.reconciler.tick()
    assert "UpdateJob" not in world.calls()
    gate.touch()
    await world.until(job["id"], "DRAINED")
    assert [each["state"] for each in (await world.show(job["id"]))["attempts"]] == ["UPDATED", "DRAINED"]


async def test_an_update_by_somebody_else_is_followed(world: World) -> None:
    job = await running(world)
    successor = await replaced_by_a_stranger(world, job)
    await until_attempt(world, job["id"], 2)
    after = await world.until(job["id"], "RUNNING")
    assert after["dataflow_job_id"] == successor
    await world.reconciler.control.stop(job["id"], "drain", "test")
    await world.until(job["id"], "DRAINED")
    assert living(world) == []


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
