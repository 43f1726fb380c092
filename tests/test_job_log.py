"""What happens to jobs is in the log, told once, and only when it is committed."""

from __future__ import annotations

import json
import logging

from service import job_store
from service.local.faults import Fault
from service.logs import JsonFormatter
from tests.job_world import World


def told(caplog) -> list[tuple[str, str]]:
    """The levels and the last parts of the records of jobs."""
    return [
        (record.levelname, record.getMessage().split("): ", 1)[1])
        for record in caplog.records
        if record.name == "service.job_log"
    ]


async def test_the_way_of_a_job_to_its_failure_is_told_and_the_failure_aloud(world: World, caplog) -> None:
    caplog.set_level(logging.INFO, "service.job_log")
    job = await world.launch(parameters={"break_with": "the table is gone"})
    await world.until(job["id"], "FAILED")
    *before, (level, failure) = told(caplog)
    assert before[:3] == [("INFO", "created"), ("INFO", "launch started"), ("INFO", "launched")]
    assert {each for each, _ in before} == {"INFO"}
    assert (level, "the table is gone" in failure) == ("ERROR", True)
    assert " to FAILED: " in failure
    [last] = [record for record in caplog.records if record.name == "service.job_log"][-1:]
    entry = json.loads(JsonFormatter("p-1234").format(last))
    assert entry["job"] | {"from": ""} == {
        "id": job["id"],
        "name": job["name"],
        "kind": "state",
        "actor": "service",
        "from": "",
        "to": "FAILED",
    }


async def test_a_refused_launch_is_a_warning_with_the_status(world: World, caplog) -> None:
    world.fail(Fault("LaunchFlexTemplate", "PERMISSION_DENIED"))
    await world.launch()
    assert (
        "WARNING",
        "state LAUNCHING to REJECTED: PERMISSION_DENIED: injected by the fault switch",
    ) in told(caplog)


async def test_what_is_not_committed_is_not_told(world: World, caplog) -> None:
    caplog.set_level(logging.INFO, "service.job_log")
    job = await world.insert()
    caplog.clear()
    async with world.database.session() as session:
        lineage = await job_store.lock(session, job.id)
        assert lineage
        job_store.record(session, lineage.job, world.clock(), "scaled", {})
        await session.rollback()
    assert told(caplog) == []


async def test_a_launch_without_an_answer_says_how_long_the_job_may_appear(world: World, caplog) -> None:
    world.fail(Fault("LaunchFlexTemplate", "UNAVAILABLE"))
    job = await world.launch()
    assert "UNAVAILABLE" in job["cause"]
    assert "may still appear until" in job["cause"]
    assert ("WARNING", f"launch unanswered: {job['cause']}") in told(caplog)
