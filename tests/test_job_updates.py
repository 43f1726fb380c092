"""Updates against the local Dataflow: a new attempt takes over, or the old one is left as it was."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.dataflow import Launch
from service.errors import ActionNotAllowedError, InvalidRequestError
from service.local.faults import Fault
from tests.job_attempts import ON_EACH_DATABASE, STRANGER, running, until_attempt, update_of
from tests.job_world import TEMPLATE, World

pytestmark = ON_EACH_DATABASE


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
