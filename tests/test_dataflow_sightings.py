"""What the verbs of Dataflow change in a running job and show of it, against the local server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from service.dataflow import (
    DataflowError,
    Distribution,
    Launch,
    MissingError,
    RefusedError,
    SeenJob,
    SeenMessage,
    UnavailableError,
    cause_of,
    user_distributions,
)
from service.local.faults import Fault
from tests.job_world import STRICT_TEMPLATE, TEMPLATE, World, make_world

PLACE = ("signin-local", "us-central1")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """No test here touches the database."""
    async with make_world(tmp_path, f"sqlite:///{tmp_path}/unused.db") as world:
        yield world


def launch_of(name: str, token: str = "t-1", **columns: Any) -> Launch:
    values = {"template_path": TEMPLATE, "labels": {"team": "identity"}, **columns}
    return Launch(*PLACE, name=name, launch_token=token, **values)


async def until_state(world: World, job_id: str, *states: str) -> SeenJob:
    async with asyncio.timeout(15):
        while (seen := await world.dataflow.get(*PLACE, job_id)).state not in states:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return seen


async def running(world: World, name: str, **columns: Any) -> SeenJob:
    launched = await world.dataflow.launch(launch_of(name, **columns))
    return await until_state(world, launched.id, "RUNNING")


async def test_an_update_replaces_the_running_job_of_its_name(world: World) -> None:
    old = await running(world, "updated")
    wanted = launch_of("updated", "t-2")
    launched = await world.dataflow.launch(wanted, update=True, transform_name_mappings={})
    new = await until_state(world, launched.id, "RUNNING")
    assert (new.replaces, new.labels["signin-launch-token"], new.labels["team"]) == (
        old.id,
        "t-2",
        "identity",
    )
    assert (await until_state(world, old.id, "UPDATED")).replaced_by == new.id
    found = await world.dataflow.find_by_name(*PLACE, "updated")
    assert [(job.id, job.state) for job in found] == [(new.id, "RUNNING"), (old.id, "UPDATED")]
    assert all(job.created_at and not job.labels for job in found)


async def test_there_must_be_a_job_to_update(world: World) -> None:
    with pytest.raises(RefusedError) as raised:
        await world.dataflow.launch(launch_of("nothing"), update=True)
    assert raised.value.status == "FAILED_PRECONDITION"
    assert await world.dataflow.find_by_name(*PLACE, "nothing") == []


async def test_a_launch_is_validated_without_a_job(world: World) -> None:
    await world.dataflow.validate(launch_of("checked"))
    with pytest.raises(RefusedError) as raised:
        await world.dataflow.validate(
            launch_of("checked", template_path=STRICT_TEMPLATE, parameters={"colour": "red"})
        )
    assert raised.value.violations == (("colour", "Unrecognized parameter"),)
    assert await world.dataflow.list_active(*PLACE) == {}


async def test_bounds_of_workers_are_set_one_by_one_and_seen(world: World) -> None:
    job = await running(world, "scaled")
    assert (job.min_workers, job.max_workers) == (None, None)
    await world.dataflow.set_workers(*PLACE, job.id, min_workers=2, max_workers=5)
    changed = await world.dataflow.set_workers(*PLACE, job.id, max_workers=7, utilization_hint=0.5)
    assert (changed.min_workers, changed.max_workers) == (2, 7)
    with pytest.raises(RefusedError):
        await world.dataflow.set_workers(*PLACE, job.id, min_workers=8)
    seen = await world.dataflow.get(*PLACE, job.id)
    assert (seen.min_workers, seen.max_workers) == (2, 7)


async def test_a_forced_cancel_does_not_wait_for_the_worker(world: World) -> None:
    job = await running(world, "forced")
    await world.dataflow.request_state(*PLACE, job.id, "CANCELLED", force=True)
    await until_state(world, job.id, "CANCELLED")
    texts = [message.text for message in (await world.dataflow.messages(*PLACE, job.id)).messages]
    assert any("cancelled by force" in text for text in texts)


async def test_messages_come_in_pages_with_their_importance_and_the_scaling_events(world: World) -> None:
    job = await running(world, "talking")
    whole = await world.dataflow.messages(*PLACE, job.id)
    assert [event.kind for event in whole.scaling] == ["CURRENT_NUM_WORKERS_CHANGED"]
    assert (whole.scaling[0].workers, whole.next_page_token) == (1, "")
    assert {message.importance for message in whole.messages} == {"BASIC"}
    first = await world.dataflow.messages(*PLACE, job.id, page_size=1)
    second = await world.dataflow.messages(*PLACE, job.id, page_size=1, page_token=first.next_page_token)
    assert (*first.messages, *second.messages) == whole.messages[:2]
    later = await world.dataflow.messages(*PLACE, job.id, since=whole.messages[1].at)
    assert later.messages == whole.messages[1:]
    calls = world.calls()["ListJobMessages"]
    assert calls == 4, "a page is one call"


async def test_metrics_are_the_committed_ones_of_the_job_and_of_dataflow(world: World) -> None:
    job = await running(world, "counting")
    seen = await world.dataflow.metrics(*PLACE, job.id)
    own = {(metric.step, metric.value) for metric in seen.metrics if metric.name == "rows"}
    assert own == {("Decode", 2), ("Write", 2)}
    assert user_distributions(seen.metrics) == {"age": Distribution(count=4, sum=40, min=8, max=12)}
    system = {metric.name: metric.value for metric in seen.metrics if metric.origin == "dataflow/v1b3"}
    assert system == {"CurrentVcpuCount": 1}
    assert seen.at
    assert await world.dataflow.counters(*PLACE, job.id, "RUNNING") == {"rows": 4}


async def test_a_location_that_cannot_be_listed_is_no_empty_list(world: World) -> None:
    await running(world, "unseen")
    world.fail(Fault(method="ListJobs", hide="location"))
    with pytest.raises(UnavailableError):
        await world.dataflow.list_active(*PLACE)


async def test_labels_of_listed_jobs_are_read_and_the_jobs_that_are_gone_left_out(world: World) -> None:
    jobs = [await world.dataflow.launch(launch_of(f"listed-{n}", f"t-{n}")) for n in range(2)]
    seen = await world.dataflow.with_labels(*PLACE, [jobs[0].id, "gone", jobs[1].id])
    assert [job.labels["signin-launch-token"] for job in seen] == ["t-0", "t-1"]
    world.fail(Fault(method="GetJob", code="UNAVAILABLE", skip=1))
    with pytest.raises(UnavailableError):
        await world.dataflow.with_labels(*PLACE, [job.id for job in jobs])


async def test_a_job_that_is_not_visible_yet_is_missing(world: World) -> None:
    job = await running(world, "late")
    world.fail(Fault(method="GetJob", hide="job", times=1))
    with pytest.raises(MissingError):
        await world.dataflow.get(*PLACE, job.id)
    assert (await world.dataflow.get(*PLACE, job.id)).id == job.id


async def test_the_calls_that_were_sent_are_counted_the_failed_ones_too(world: World) -> None:
    world.fail(Fault(method="GetJob", code="INTERNAL"))
    with pytest.raises(DataflowError):
        await world.dataflow.get(*PLACE, "any")
    await world.dataflow.list_active(*PLACE)
    assert world.dataflow.calls == 2


async def test_the_cause_of_a_failure_is_the_exception_of_the_worker(world: World) -> None:
    job = await world.dataflow.launch(launch_of("broken", parameters={"break_with": "no more ink"}))
    await until_state(world, job.id, "FAILED")
    cause = await world.dataflow.failure_cause(*PLACE, job.id)
    assert cause
    assert "RuntimeError: no more ink" in cause
    world.fail(Fault(method="ListJobMessages", code="UNAVAILABLE"))
    assert await world.dataflow.failure_cause(*PLACE, job.id) is None


TRACEBACK = "Error message from worker: Traceback (most recent call last):\n  File\nValueError: bad row"
ATTEMPTED = "The work item was attempted 4 times without success. Each time the worker lost contact."
NAMED = "google.api_core.exceptions.NotFound: 404 Table is gone"


@pytest.mark.parametrize(
    ("texts", "best"),
    [
        ([], None),
        (["  "], None),
        ([TRACEBACK, ATTEMPTED, "Workflow failed."], TRACEBACK),
        ([TRACEBACK, NAMED], TRACEBACK),
        ([NAMED, "Something odd", ATTEMPTED], NAMED),
        (["java.lang.IllegalStateException: no", ATTEMPTED], "java.lang.IllegalStateException: no"),
        (["Traceback (most recent call last):", "Disk is full"], "Disk is full"),
        (["The first", "The second", ATTEMPTED], "The second"),
        ([ATTEMPTED], ATTEMPTED),
        (["x" * 5000 + " ValueError: the end"], "x" * 3980 + " ValueError: the end"),
    ],
)
def test_the_message_that_names_the_fault_beats_what_stands_around_every_failure(
    texts: list[str], best: str | None
) -> None:
    now = datetime.now(UTC)
    messages = [SeenMessage(str(n), now, "ERROR", text) for n, text in enumerate(texts)]
    messages.append(SeenMessage("w", now, "WARNING", "Traceback (most recent call last):\n  x\nValueError"))
    assert cause_of(messages) == best
