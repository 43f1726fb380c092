"""Batch jobs: Dataflow lets nobody drain, update or scale them, and the service says so first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import job_store
from service.dataflow import Launch
from service.pipelines import BACKFILL
from tests.job_world import BATCH_TEMPLATE, World, make_world

ACTS: dict[str, tuple[str, str, dict[str, object]]] = {
    "drain": ("POST", "drain", {"deadline_seconds": 1, "on_deadline": "cancel"}),
    "update": ("POST", "update", {}),
    "scale": ("PATCH", "autoscaling", {"max_workers": 2}),
}


@pytest.fixture
async def world(tmp_path: Path, database_url: str) -> AsyncIterator[World]:
    """Job control on each database; its backfills run until they are told to end."""
    pipelines = {"nightly": {"template_path": BATCH_TEMPLATE, "streaming": False}}
    overrides: dict[str, Any] = {"backfill_template_path": BATCH_TEMPLATE, "pipelines": pipelines}
    async with make_world(tmp_path, database_url, **overrides) as world:
        yield world


async def ask(world: World, job_id: str, action: str) -> httpx.Response:
    method, path, body = ACTS[action]
    return await world.http.request(method, f"/jobs/{job_id}/{path}", json=body)


@pytest.mark.parametrize("pipeline", [BACKFILL, "nightly"])
async def test_a_batch_job_is_cancelled_and_nothing_else_that_it_is_asked_for_is_taken(
    world: World, pipeline: str
) -> None:
    job = await world.launch(pipeline=pipeline, shared_subscription=True)
    await world.until(job["id"], "RUNNING")
    actions = (await world.show(job["id"]))["actions"]
    for action in ACTS:
        answer = await ask(world, job["id"], action)
        told = answer.json()
        assert (answer.status_code, told["code"]) == (409, "action_not_allowed"), told
        assert told["allowed_actions"] == ["cancel"]
        assert actions[action] == {"allowed": False, "reason": told["detail"]}
        assert "batch job" in told["detail"]
    shown = await world.show(job["id"])
    assert (shown["state"], shown["requested_state"]) == ("RUNNING", "RUNNING")
    assert (len(shown["attempts"]), shown["scaling_pending"]) == (1, False)
    assert "UpdateJob" not in world.calls()
    assert world.calls()["LaunchFlexTemplate"] == 1
    assert (await world.http.post(f"/jobs/{job['id']}/cancel")).status_code == 202
    await world.until(job["id"], "CANCELLED")


async def test_what_a_batch_job_cannot_do_is_not_kept_for_when_it_runs(world: World) -> None:
    job = await world.insert(pipeline=BACKFILL)
    for action in ACTS:
        assert (await ask(world, job.id, action)).status_code == 409
    shown = await world.show(job.id)
    assert (shown["state"], shown["requested_state"]) == ("LAUNCHING", "RUNNING")


async def test_a_drain_that_an_earlier_release_took_neither_asks_for_ever_nor_cancels_the_batch_job(
    world: World,
) -> None:
    job_id = (await world.launch(pipeline=BACKFILL))["id"]
    await world.until(job_id, "RUNNING")
    async with world.database.transaction() as session:
        lineage = await job_store.lock(session, job_id)
        assert lineage
        job = lineage.job
        job.requested_state, job.drain_requested_at = "DRAINED", world.clock()
        job.drain_deadline_seconds, job.on_drain_deadline = 1, "cancel"
    world.clock.advance(seconds=60)
    for _ in range(2):
        await world.reconciler.tick()
    shown = await world.show(job_id)
    assert (shown["state"], shown["requested_state"], shown["cause"]) == ("RUNNING", "DRAINED", None)
    assert "UpdateJob" not in world.calls()
    await world.http.post(f"/jobs/{job_id}/cancel")
    await world.until(job_id, "CANCELLED")


async def test_a_batch_job_of_somebody_else_is_listed_and_cannot_be_adopted(world: World) -> None:
    settings = world.settings
    launch = Launch(settings.project, settings.region, "somebody-elses", BATCH_TEMPLATE, "foreign-token")
    strange = (await world.dataflow.launch(launch)).id
    [listed] = (await world.http.get("/jobs/unmanaged")).json()["jobs"]
    assert (listed["dataflow_job_id"], listed["adoptable"]) == (strange, False)
    answer = await world.http.post("/jobs/adopt", json={"dataflow_job_id": strange})
    assert (answer.status_code, answer.json()["code"]) == (409, "action_not_allowed")
    assert "batch job" in answer.json()["detail"]
