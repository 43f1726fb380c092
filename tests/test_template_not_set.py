"""On Google Cloud a template path of the local stack is none: its bucket may be anybody's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service import checkup
from service.checkup import dataflow
from service.checkup.findings import Trouble
from service.checkup.place import Place
from service.config import Pipeline, Settings
from service.dataflow import RefusedError
from service.errors import TemplateNotSetError
from service.pipelines import at_version, described
from service.start_rules import require_startable
from service.template_specs import TemplateSpecs
from tests.job_world import World, make_world
from tests.serving import NOBODY
from tests.storage_server import StorageServer

OURS = "gs://my-bucket/templates/user-signin.json"
LOCAL = "gs://signin-local/templates/backfill-signin.json"


@pytest.fixture
def storage():
    """The bucket as its owner has it, with a spec that takes anything."""
    with StorageServer("signin-local") as server:
        for name in ("user-signin", "backfill-signin"):
            server.objects["signin-local", f"templates/{name}.json"] = b'{"image": "theirs"}'
        yield server


@pytest.fixture
async def google(
    tmp_path: Path, database_url: str, storage: StorageServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    """The service as it is with no emulator of Dataflow, of which only SIGNIN_TEMPLATE_PATH was set."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    async with make_world(
        tmp_path,
        database_url,
        project="my-project",
        template_path=OURS,
        dataflow_emulator_host="",
        dataflow_endpoint=NOBODY,
        storage_endpoint=storage.url,
        allowed_templates=["gs://*"],
        pipelines={"audit": Pipeline(template_path="gs://signin-local/templates/audit.json")},
    ) as world:
        yield world


@pytest.mark.parametrize("query", ["", "?validate_only=true"])
@pytest.mark.parametrize(
    ("pipeline", "variable"),
    [("backfill-signin", "SIGNIN_BACKFILL_TEMPLATE_PATH"), ("audit", "SIGNIN_PIPELINES")],
)
async def test_a_pipeline_whose_template_is_not_set_is_refused_and_nothing_is_asked(
    google: World, storage: StorageServer, pipeline: str, variable: str, query: str
) -> None:
    body = {"pipeline": pipeline, "parameters": {"input_files": "gs://my-bucket/*"}}
    answer = await google.http.post(f"/jobs{query}", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "template_not_set")
    assert variable in answer.json()["detail"]
    assert (await google.http.get("/jobs")).json()["jobs"] == []
    assert (storage.calls, google.dataflow.calls) == (0, 0)


@pytest.mark.parametrize("named", [{}, {"template_path": LOCAL}])
async def test_an_update_to_a_template_of_the_local_stack_is_refused(
    google: World, storage: StorageServer, named: dict[str, str]
) -> None:
    pipeline = "user-signin" if named else "backfill-signin"
    job = await google.insert(state="RUNNING", dataflow_job_id="2026-1", pipeline=pipeline)
    answer = await google.http.post(f"/jobs/{job.id}/update", json=named)
    assert (answer.status_code, answer.json()["code"]) == (422, "template_not_set")
    assert "SIGNIN_BACKFILL_TEMPLATE_PATH is not set" in answer.json()["detail"]
    assert (await google.entry(job.id)).job.pending_attempt is None
    assert (storage.calls, google.dataflow.calls) == (0, 0)


async def test_an_adopted_job_cannot_be_updated_to_one_either(google: World) -> None:
    job = await google.insert(state="RUNNING", dataflow_job_id="2026-1", adopted=True)
    answer = await google.http.post(f"/jobs/{job.id}/update", json={"template_path": LOCAL})
    assert (answer.status_code, answer.json()["code"]) == (422, "template_not_set")


async def test_a_job_that_was_committed_before_is_not_launched_of_one(google: World) -> None:
    job = await google.insert(template_path=LOCAL)
    refusal = await google.desk.control.launch(job)
    assert isinstance(refusal, RefusedError)
    shown = await google.show(job.id)
    assert shown["state"] == "REJECTED"
    assert "SIGNIN_BACKFILL_TEMPLATE_PATH is not set" in shown["cause"]
    assert google.dataflow.calls == 0


async def test_the_spec_of_such_a_path_is_not_read(google: World, storage: StorageServer) -> None:
    specs = TemplateSpecs(google.desk.templates._rest, google.settings)
    assert await specs.read(Pipeline(template_path=LOCAL)) is None
    assert storage.calls == 0


def settings(**values: object) -> Settings:
    return Settings(_env_file=None, **({"project": "my-project", "template_path": OURS} | values))


def test_the_service_starts_all_the_same(tmp_path: Path) -> None:
    require_startable(settings(data_dir=tmp_path))


def test_an_update_may_name_a_template_of_ours_where_the_settings_name_none() -> None:
    known = settings(allowed_templates=["gs://my-bucket/*"])
    backfill = described(known, "backfill-signin")
    assert at_version(backfill, OURS, known).template_path == OURS
    with pytest.raises(TemplateNotSetError):
        at_version(backfill, None, known)


def test_with_a_local_dataflow_the_default_paths_are_templates() -> None:
    local = settings(dataflow_emulator_host=NOBODY)
    assert local.template_not_set(LOCAL) == ""
    assert settings().template_not_set(OURS) == ""


@pytest.mark.parametrize(
    ("name", "variable", "is_fatal"),
    [
        ("user-signin", "SIGNIN_TEMPLATE_PATH is not set", True),
        ("backfill-signin", "SIGNIN_BACKFILL_TEMPLATE_PATH is not set", False),
    ],
)
async def test_the_check_of_the_settings_says_which_template_is_not_set(
    storage: StorageServer, name: str, variable: str, is_fatal: bool
) -> None:
    unset = Settings(_env_file=None, project="my-project", storage_endpoint=storage.url)
    place = Place(unset)
    try:
        targets = [each.target for each in checkup.checks_of(place) if each.name == "template"]
        with pytest.raises(Trouble) as told:
            await dataflow.template(place, name, described(unset, name))
    finally:
        await place.close()
    assert targets == ["user-signin", "backfill-signin"]  # and no path that nobody has chosen
    assert variable in told.value.detail
    assert told.value.is_fatal is is_fatal
    assert f"signin template publish {name}" in told.value.remedies[0]
    assert storage.calls == 0
