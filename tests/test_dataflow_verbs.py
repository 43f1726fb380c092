"""The verbs of Dataflow against the local server, and what its errors become."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.cloud import dataflow_v1beta3 as df

from service.clients import Clients
from service.config import Settings
from service.dataflow import (
    Dataflow,
    DataflowError,
    MissingError,
    NameTakenError,
    OutcomeUnknownError,
    RefusedError,
    UnavailableError,
    user_counters,
    verbs,
)
from service.dataflow.sightings import committed_metrics, seen_job
from service.local.faults import Fault
from tests.job_world import STRICT_TEMPLATE, World, make_world

PLACE = ("signin-local", "us-central1")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """No test here touches the database."""
    async with make_world(
        tmp_path, f"sqlite:///{tmp_path}/unused.db", dataflow_deadline_seconds=1.0
    ) as world:
        yield world


def launchable(world: World, **columns: Any) -> Any:
    from service.job_bodies import NewJob
    from service.job_request import new_job

    job = new_job(NewJob(), world.settings, world.clock())
    for name, value in columns.items():
        setattr(job, name, value)
    return job


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", RefusedError),
        ("PERMISSION_DENIED", RefusedError),
        ("UNAUTHENTICATED", RefusedError),
        ("FAILED_PRECONDITION", RefusedError),
        ("OUT_OF_RANGE", RefusedError),
        ("UNIMPLEMENTED", RefusedError),
        ("NOT_FOUND", MissingError),
        ("ALREADY_EXISTS", NameTakenError),
        ("UNAVAILABLE", UnavailableError),
        ("RESOURCE_EXHAUSTED", UnavailableError),
        ("DEADLINE_EXCEEDED", OutcomeUnknownError),
        ("CANCELLED", OutcomeUnknownError),
        ("INTERNAL", OutcomeUnknownError),
        ("UNKNOWN", OutcomeUnknownError),
        ("ABORTED", OutcomeUnknownError),
        ("DATA_LOSS", OutcomeUnknownError),
    ],
)
async def test_each_status_becomes_its_own_kind_of_error(code: str, kind: type, world: World) -> None:
    world.fail(Fault(code=code))
    with pytest.raises(DataflowError) as raised:
        await world.dataflow.get(*PLACE, "any")
    assert type(raised.value) is kind
    assert raised.value.status == code
    assert world.calls() == {"GetJob": 1}


async def test_a_call_without_an_answer_ends_at_its_deadline(world: World) -> None:
    world.fail(Fault(delay_seconds=60))
    with pytest.raises(OutcomeUnknownError):
        await world.dataflow.list_active(*PLACE)


async def test_a_missing_template_is_a_refusal_and_not_a_missing_job(world: World) -> None:
    job = launchable(world, template_path="gs://signin-local/templates/no-such-thing.json")
    with pytest.raises(RefusedError) as raised:
        await world.dataflow.launch(job)
    assert type(raised.value) is RefusedError


async def test_refused_parameters_are_named(world: World) -> None:
    job = launchable(world, template_path=STRICT_TEMPLATE, parameters={"colour": "red", "size": "xl"})
    with pytest.raises(RefusedError) as raised:
        await world.dataflow.launch(job)
    assert {name for name, _ in raised.value.violations} == {"colour", "size"}


async def test_a_launched_job_is_found_by_id_by_name_and_in_the_list(world: World) -> None:
    job = launchable(world)
    launched = await world.dataflow.launch(job)
    seen = await world.dataflow.get(*PLACE, launched.id)
    assert seen.labels["signin-launch-token"] == job.launch_token
    assert [found.id for found in await world.dataflow.find_by_name(*PLACE, job.name)] == [launched.id]
    assert set(await world.dataflow.list_active(*PLACE)) == {launched.id}
    assert await world.dataflow.find_by_name(*PLACE, job.name[:-1]) == []
    assert await world.dataflow.list_active(PLACE[0], "europe-west1") == {}
    with pytest.raises(NameTakenError):
        await world.dataflow.launch(job)


async def test_lists_are_read_to_their_last_page(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "_PAGE_SIZE", 1)
    launched = {(await world.dataflow.launch(launchable(world))).id for _ in range(3)}
    assert set(await world.dataflow.list_active(*PLACE)) == launched
    assert world.calls()["ListJobs"] == 3


async def test_counters_are_asked_for_once_in_an_interval_and_again_when_the_job_has_moved_on(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/unused.db"
    async with make_world(tmp_path, url, reconcile_interval_seconds=60) as world:
        for state in ("RUNNING", "RUNNING", "DRAINED", "DRAINED"):
            assert await world.dataflow.counters(*PLACE, "nobody", state) is None
        assert world.calls() == {"GetJobMetrics": 2}


def test_counters_leave_out_tentative_twins_and_what_beam_counts_itself() -> None:
    def metric(name: str, value: float, origin: str = "user", **context: str) -> dict[str, Any]:
        return {"name": {"origin": origin, "name": name, "context": context}, "scalar": value}

    metrics = df.JobMetrics(
        metrics=[
            metric("rows", 3, step="A"),
            metric("rows", 4, step="B"),
            metric("rows", 99, step="A", tentative="true"),
            metric("ElementCount", 50, origin="dataflow/v1b3"),
            {"name": {"origin": "user", "name": "spread"}, "distribution": {"sum": 5.0}},
        ]
    )
    assert user_counters(committed_metrics(metrics).metrics) == {"rows": 7}


def test_a_state_that_the_library_does_not_know_is_told_by_its_number() -> None:
    raw = df.Job.pb()(id="j", name="n", current_state=77)
    assert seen_job(df.Job.wrap(raw)).state == "77"
    assert seen_job(df.Job(id="j")).state == "UNKNOWN"


async def test_missing_credentials_are_told_as_unavailable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    settings = Settings(_env_file=None, project="some-project", dataflow_emulator_host="")
    clients = Clients(settings)
    try:
        with pytest.raises(UnavailableError, match="gcloud auth application-default login"):
            await Dataflow(clients, settings).list_active("some-project", "us-central1")
    finally:
        await clients.close()
