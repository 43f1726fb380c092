"""The /jobs routes against the local Dataflow server, on both databases."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service import jobs, problems
from service.local.faults import Fault
from tests.job_world import STRICT_TEMPLATE, World, make_world, outage


async def test_a_launch_answers_202_with_the_whole_job(world: World) -> None:
    answer = await world.http.post("/jobs", json={"name": "signins"})
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert job["name"] == f"signins-{job['id'][-10:]}"
    assert job["dataflow_job_id"]
    assert job["requested_state"] == "RUNNING"
    assert job["parameters"] == {
        "input_subscription": "projects/signin-local/subscriptions/user-signin-bigquery",
        "output_table": "user_signin.signins",
        "dead_letter_table": "user_signin.dead_letters",
    }
    allowed = {name for name, action in job["actions"].items() if action["allowed"]}
    assert allowed == {"drain", "cancel", "scale"}
    assert all(action["allowed"] or action["reason"] for action in job["actions"].values())


async def test_a_launched_job_runs_and_tells_what_it_counts(world: World) -> None:
    job = await world.launch()
    running = await world.until(job["id"], "RUNNING")
    assert running["counters"] == {"rows": 4}
    assert not running["stale"]
    assert running["console_url"] is None
    assert [attempt["state"] for attempt in running["attempts"]] == ["RUNNING"]
    assert (await world.history(job["id"]))[:3] == ["created", "launch_started", "launched"]


async def test_the_launch_carries_the_token_and_the_environment(tmp_path: Path, database_url: str) -> None:
    async with make_world(tmp_path, database_url, max_workers=7, service_account="a@b.c") as world:
        job = await world.launch()
        [launched] = world.server._fleet.jobs.values()
        environment = launched.launch.environment
        row = (await world.entry(job["id"])).job
        assert environment.max_workers == 7
        assert environment.service_account_email == "a@b.c"
        assert dict(environment.additional_user_labels) == {
            "signin-job": job["id"],
            "signin-pipeline": "user-signin",
            "signin-launch-token": row.launch_token,
        }
        assert row.launch_token not in str(job)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"pipeline": "other"}, "unknown_pipeline"),
        ({"nmae": "typo"}, "invalid_request"),
        ({"name": "Not-A-Name"}, "invalid_request"),
        ({"name": 5}, "invalid_request"),
        ({"parameters": {"a": 1}}, "invalid_request"),
        ({"parameters": {"a": "nul\0"}}, "invalid_request"),
        ({"parameters": {"--flag": "x"}}, "invalid_request"),
        ({"parameters": {"input_subscription": "x" * 600}}, "invalid_request"),
        ({"shared_subscription": "yes"}, "invalid_request"),
    ],
)
async def test_a_body_that_does_not_fit_is_refused(body: dict[str, object], code: str, world: World) -> None:
    answer = await world.http.post("/jobs", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert (await world.http.get("/jobs")).json()["jobs"] == []


async def test_a_topic_and_a_subscription_at_once_are_refused(world: World) -> None:
    both = {name: f"projects/p-1234/{name}s/x" for name in ("input_topic", "input_subscription")}
    answer = await world.http.post("/jobs", json={"parameters": both})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize(
    "parameters",
    [
        {"dead_letter_topic": "projects/signin-local/topics/topic-user-signin"},
        dict.fromkeys(("input_topic", "dead_letter_topic"), "projects/p-1234/topics/x"),
    ],
)
async def test_dead_letters_that_would_come_back_to_a_job_are_refused(
    parameters: dict[str, str], world: World
) -> None:
    answer = await world.http.post("/jobs", json={"parameters": parameters})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "would come back" in answer.json()["detail"]
    job = await world.launch(
        parameters={name: parameters[name] for name in parameters.keys() & {"input_topic"}}
    )
    await world.until(job["id"], "RUNNING")
    answer = await world.http.post(f"/jobs/{job['id']}/update", json={"parameters": parameters})
    assert answer.status_code == 422


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_a_job_that_is_not_sent_as_json_is_refused(content_type: str, world: World) -> None:
    answer = await world.http.post("/jobs", content=b"{}", headers={"Content-Type": content_type})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


async def test_two_jobs_on_one_subscription_need_to_be_asked_for_by_name(world: World) -> None:
    first = await world.launch()
    refused = await world.http.post("/jobs", json={})
    assert (refused.status_code, refused.json()["code"]) == (409, "subscription_in_use")
    assert refused.json()["job_id"] == first["id"]
    await world.launch(shared_subscription=True)
    await world.launch(parameters={"input_subscription": "projects/signin-local/subscriptions/other"})
    await world.launch(parameters={"input_topic": "projects/signin-local/topics/own"})


async def test_a_subscription_is_free_again_when_its_job_has_ended(world: World) -> None:
    job = await world.launch()
    await world.until(job["id"], "RUNNING")
    await world.http.post(f"/jobs/{job['id']}/cancel")
    await world.until(job["id"], "CANCELLED")
    await world.launch()


async def test_of_many_requests_at_once_one_gets_the_subscription(world: World) -> None:
    answers = await asyncio.gather(*(world.http.post("/jobs", json={}) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [202] + [409] * 7
    assert world.calls()["LaunchFlexTemplate"] == 1


async def test_parameters_that_dataflow_refuses_are_named(tmp_path: Path, database_url: str) -> None:
    async with make_world(tmp_path, database_url, template_path=STRICT_TEMPLATE) as world:
        answer = await world.http.post("/jobs", json={"parameters": {"colour": "red"}})
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (422, "invalid_parameters")
        assert [error["field"] for error in problem["errors"]] == ["body.parameters.colour"]
        job = await world.show(problem["job_id"])
        assert (job["state"], job["active"]) == ("REJECTED", False)
        assert "colour" in job["cause"]
        await world.launch()


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "NOT_FOUND", "FAILED_PRECONDITION"])
async def test_a_launch_that_dataflow_refuses_is_rejected_with_its_cause(code: str, world: World) -> None:
    world.fail(*outage("LaunchFlexTemplate", code=code))
    job = await world.launch()
    assert (job["state"], job["cause"]) == ("REJECTED", f"{code}: injected by the fault switch")
    assert not job["actions"]["drain"]["allowed"]
    assert await world.history(job["id"]) == ["created", "launch_started", "LAUNCHING>REJECTED"]


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN"])
async def test_a_launch_whose_answer_is_lost_is_adopted(code: str, world: World) -> None:
    world.fail(Fault("LaunchFlexTemplate", code, after=True))
    job = await world.launch()
    assert (job["state"], job["dataflow_job_id"]) == ("LAUNCHING", None)
    world.fail()
    running = await world.until(job["id"], "RUNNING")
    [seen] = await world.dataflow_jobs(job["name"])
    assert running["dataflow_job_id"] == seen.id
    assert running["cause"] is None
    assert world.calls()["LaunchFlexTemplate"] == 1
    assert "adopted" in await world.history(job["id"])


async def test_a_drain_ends_the_job_and_can_be_asked_for_twice(world: World) -> None:
    job = await world.launch()
    await world.until(job["id"], "RUNNING")
    answer = await world.http.post(f"/jobs/{job['id']}/drain")
    assert (answer.status_code, answer.json()["requested_state"]) == (202, "DRAINED")
    assert (await world.http.post(f"/jobs/{job['id']}/drain")).status_code == 200
    drained = await world.until(job["id"], "DRAINED")
    assert drained["ended_at"]
    assert drained["counters"] == {"rows": 6}
    assert (await world.http.post(f"/jobs/{job['id']}/drain")).status_code == 200
    refused = await world.http.post(f"/jobs/{job['id']}/cancel")
    assert (refused.status_code, refused.json()["code"]) == (409, "action_not_allowed")
    assert refused.json()["allowed_actions"] == []


async def test_a_drain_before_the_job_runs_is_kept_until_it_does(world: World, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job = await world.launch(parameters={"gate": str(gate)})
    await world.until(job["id"], "PENDING")
    answer = await world.http.post(f"/jobs/{job['id']}/drain")
    assert (answer.status_code, answer.json()["state"]) == (202, "PENDING")
    await world.reconciler.tick()
    assert "UpdateJob" not in world.calls()
    gate.touch()
    await world.until(job["id"], "DRAINED")


async def test_a_cancel_goes_further_than_a_drain_and_not_back(world: World, tmp_path: Path) -> None:
    job = await world.launch(parameters={"gate": str(tmp_path / "never")})
    assert (await world.http.post(f"/jobs/{job['id']}/drain")).status_code == 202
    cancelled = await world.http.post(f"/jobs/{job['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["requested_state"]) == (202, "CANCELLED")
    refused = await world.http.post(f"/jobs/{job['id']}/drain")
    assert refused.status_code == 409
    await world.until(job["id"], "CANCELLED")
    assert (await world.http.post(f"/jobs/{job['id']}/cancel")).status_code == 200


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("action", ["drain", "cancel"])
async def test_a_stop_whose_call_fails_still_happens(after: bool, action: str, world: World) -> None:
    job = await world.launch()
    await world.until(job["id"], "RUNNING")
    world.fail(Fault("UpdateJob", "INTERNAL", times=1, after=after))
    answer = await world.http.post(f"/jobs/{job['id']}/{action}")
    assert answer.status_code == 202
    await world.until(job["id"], {"drain": "DRAINED", "cancel": "CANCELLED"}[action])
    assert (await world.show(job["id"]))["cause"] is None


async def test_a_stop_is_kept_while_dataflow_is_away(world: World) -> None:
    job = await world.launch()
    await world.until(job["id"], "RUNNING")
    world.fail(*outage())
    answer = await world.http.post(f"/jobs/{job['id']}/drain")
    assert (answer.status_code, answer.json()["requested_state"]) == (202, "DRAINED")
    assert answer.json()["cause"] == "UNAVAILABLE: injected by the fault switch"
    assert not await world.reconciler.tick()
    world.fail()
    await world.until(job["id"], "DRAINED")


async def test_a_database_without_the_schema_is_told_as_503(tmp_path: Path, empty_database_url: str) -> None:
    async with make_world(tmp_path, empty_database_url) as world:
        for method, path in [("GET", "/jobs"), ("POST", "/jobs"), ("GET", f"/jobs/{'0' * 20}")]:
            answer = await world.http.request(method, path, json={} if method == "POST" else None)
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
            assert answer.headers["retry-after"]
        assert "LaunchFlexTemplate" not in world.calls()


def test_the_api_document_names_every_answer() -> None:
    app = FastAPI()
    problems.install(app)
    app.include_router(jobs.router)
    paths = app.openapi()["paths"]
    answers = {
        f"{method} {path}": sorted(operation["responses"])
        for path, operations in paths.items()
        for method, operation in operations.items()
    }
    assert answers["post /jobs"] == ["200", "202", "400", "408", "409", "413", "415", "422", "500", "503"]
    assert set(answers["get /jobs/{job_id}"]) >= {"200", "304", "404", "503"}
    assert set(answers["post /jobs/{job_id}/drain"]) >= {"200", "202", "404", "409", "503"}


async def test_a_launch_answers_while_dataflow_is_not_there(tmp_path: Path, database_url: str) -> None:
    async with make_world(tmp_path, database_url, dataflow_deadline_seconds=0.5) as world:
        await world.server._server.stop(None)
        answer = await world.http.post("/jobs", json={})
        assert isinstance(answer, httpx.Response)
        assert (answer.status_code, answer.json()["state"]) == (202, "LAUNCHING")
        assert answer.json()["cause"]


@pytest.mark.parametrize("query", ["validateonly=true", "validate_only=true&validate_only=false", "a%20b=1"])
async def test_a_launch_with_a_query_that_means_nothing_launches_nothing(query: str, world: World) -> None:
    answer = await world.http.post(f"/jobs?{query}", json={})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert answer.json()["errors"][0]["field"].startswith("query.")
    assert "LaunchFlexTemplate" not in world.calls()
