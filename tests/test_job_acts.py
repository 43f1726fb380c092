"""What may be asked of a job over HTTP: drains with a deadline, force, updates, bounds, adoption."""

from __future__ import annotations

from pathlib import Path

from service.dataflow import Launch
from service.local.faults import Fault
from tests.job_world import STRICT_TEMPLATE, TEMPLATE, World, make_world, outage

METADATA = Path(__file__).parents[1] / "pipeline" / "template.json"


async def running(world: World, **body: object) -> dict[str, object]:
    job = await world.launch(**body)
    return await world.until(job["id"], "RUNNING")


async def test_a_drain_keeps_its_deadline_and_what_follows_it(world: World) -> None:
    job = await running(world)
    body = {"deadline_seconds": 600, "on_deadline": "cancel"}
    world.fail(Fault("UpdateJob", "UNAVAILABLE"))
    answer = await world.http.post(f"/jobs/{job['id']}/drain", json=body)
    shown = answer.json()
    assert (answer.status_code, shown["requested_state"]) == (202, "DRAINED")
    assert (shown["drain_deadline_seconds"], shown["on_drain_deadline"]) == (600, "cancel")
    drain = (await world.http.get(f"/jobs/{job['id']}/metrics")).json()["drain"]
    assert drain["on_deadline"] == "cancel"
    assert drain["deadline_at"] > drain["requested_at"]
    world.clock.advance(seconds=601)
    await world.reconciler.tick()
    assert (await world.show(job["id"]))["requested_state"] == "CANCELLED"
    world.fail()
    await world.until(job["id"], "CANCELLED")


async def test_what_the_launch_says_of_drains_and_restarts_is_kept(world: World) -> None:
    asked = {
        "drain_deadline_seconds": 60,
        "on_drain_deadline": "cancel",
        "restart_policy": "on-failure",
        "restart_limit": 2,
    }
    job = await world.launch(**asked)
    assert {name: job[name] for name in asked} == asked
    plain = await world.launch(shared_subscription=True)
    assert (plain["restart_policy"], plain["restart_limit"], plain["on_drain_deadline"]) == (
        "never",
        0,
        "wait",
    )


async def test_a_drain_that_makes_no_sense_is_refused(world: World) -> None:
    job = await world.insert(state="RUNNING")
    bodies = ({"deadline_seconds": 0}, {"deadline_seconds": "5"}, {"on_deadline": "explode"}, {"when": 1}, [])
    for body in bodies:
        answer = await world.http.post(f"/jobs/{job.id}/drain", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), body
    assert (await world.entry(job.id)).job.requested_state == "RUNNING"


async def test_force_needs_the_word_and_half_an_hour(world: World) -> None:
    job = await running(world)
    path, word = f"/jobs/{job['id']}/force-cancel", {"confirm": "FORCE-CANCEL"}
    for body in ({}, {"confirm": True}, {"confirm": "force-cancel"}):
        assert (await world.http.post(path, json=body)).status_code == 422
    early = await world.http.post(path, json=word)
    assert (early.status_code, early.json()["code"]) == (409, "action_not_allowed")
    assert "force_cancel" not in early.json()["allowed_actions"]
    world.fail(Fault("UpdateJob", "UNAVAILABLE"))
    await world.http.post(f"/jobs/{job['id']}/cancel")
    world.clock.advance(minutes=29)
    assert (await world.http.post(path, json=word)).status_code == 409
    world.clock.advance(minutes=2)
    shown = await world.show(job["id"])
    assert shown["actions"]["force_cancel"] == {"allowed": True, "reason": None}
    world.fail()
    forced = await world.http.post(path, json=word)
    assert forced.status_code == 202
    assert forced.json()["force_cancel_requested_at"]
    await world.until(job["id"], "CANCELLED")
    assert (await world.http.post(path, json=word)).status_code == 200


async def test_an_update_changes_what_it_names_and_keeps_the_rest(world: World) -> None:
    job = await running(world, parameters={"break_with": ""}, environment={"machine_type": "e2-medium"})
    body = {
        "parameters": {"pipeline_version": "2", "break_with": None},
        "environment": {"num_workers": 2},
        "transform_name_mappings": {"Old": "New", "Gone": ""},
    }
    answer = await world.http.post(f"/jobs/{job['id']}/update", json=body)
    assert answer.status_code == 202, answer.text
    shown = answer.json()
    assert [each["kind"] for each in shown["attempts"]] == ["launch", "update"]
    replacement = shown["attempts"][1]
    assert replacement["replaces"] == 1
    assert replacement["parameters"] == {
        **{name: value for name, value in job["parameters"].items() if name != "break_with"},
        "pipeline_version": "2",
    }
    assert replacement["environment"] == {"max_workers": 5, "machine_type": "e2-medium", "num_workers": 2}
    assert replacement["transform_name_mappings"] == {"Old": "New", "Gone": ""}
    twice = await world.http.post(f"/jobs/{job['id']}/update", json={})
    assert (twice.status_code, twice.json()["code"]) == (409, "action_not_allowed")


SENSELESS_UPDATES = [
    ({"parameters": {"colour": "red"}}, "invalid_parameters"),
    ({"parameters": {"output_table": "nonsense"}}, "invalid_parameters"),
    ({"parameters": {"input_subscription": "projects/p-1234/subscriptions/other"}}, "invalid_request"),
    ({"environment": {"max_workers": 99}}, "invalid_request"),
    ({"template_path": "gs://elsewhere/evil.json"}, "invalid_request"),
    ({"transform_name_mappings": {"": "x"}}, "invalid_request"),
    ({"paramters": {}}, "invalid_request"),
]


async def test_an_update_that_makes_no_sense_is_refused_before_any_call(tmp_path, migrated_sqlite):
    database = tmp_path / "checked.db"
    database.write_bytes(migrated_sqlite.read_bytes())
    async with make_world(tmp_path, f"sqlite:///{database}", template_metadata=METADATA) as world:
        job = await running(world)
        for body, code in SENSELESS_UPDATES:
            answer = await world.http.post(f"/jobs/{job['id']}/update", json=body)
            assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
        assert world.calls()["LaunchFlexTemplate"] == 1
        assert len((await world.show(job["id"]))["attempts"]) == 1


async def test_an_update_may_name_another_template_where_the_settings_allow_it(tmp_path, database_url):
    async with make_world(tmp_path, database_url, allowed_templates=["gs://tests/*"]) as world:
        job = await running(world)
        body = {"template_path": STRICT_TEMPLATE}
        answer = await world.http.post(f"/jobs/{job['id']}/update", json=body)
        assert answer.status_code == 202, answer.text
        assert [each["template_path"] for each in answer.json()["attempts"]] == [TEMPLATE, STRICT_TEMPLATE]


async def test_an_update_that_dataflow_refuses_is_told_and_the_job_goes_on(tmp_path, database_url):
    async with make_world(tmp_path, database_url, allowed_templates=["gs://tests/*"]) as world:
        job = await running(world)
        body = {"template_path": STRICT_TEMPLATE, "parameters": {"colour": "red"}}
        answer = await world.http.post(f"/jobs/{job['id']}/update", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameters")
        assert [error["field"] for error in answer.json()["errors"]] == ["body.parameters.colour"]
        world.fail(*outage("LaunchFlexTemplate", code="PERMISSION_DENIED"))
        answer = await world.http.post(f"/jobs/{job['id']}/update", json={})
        assert (answer.status_code, answer.json()["code"]) == (502, "dataflow_refused")
        world.fail()
        shown = await world.show(job["id"])
        assert (shown["state"], shown["attempt"], shown["pending_attempt"]) == ("RUNNING", 1, None)


async def test_the_bounds_of_workers_are_changed_while_the_job_runs(world: World) -> None:
    job = await running(world)
    path = f"/jobs/{job['id']}/autoscaling"
    answer = await world.http.patch(path, json={"min_workers": 2, "max_workers": 4})
    assert answer.status_code == 202, answer.text
    shown = await world.show(job["id"])
    assert (shown["min_workers"], shown["max_workers"], shown["scaling_pending"]) == (2, 4, False)
    seen = await world.dataflow.get(job["project"], job["region"], job["dataflow_job_id"])
    assert (seen.min_workers, seen.max_workers) == (2, 4)
    await world.http.patch(path, json={"max_workers": 5})
    seen = await world.dataflow.get(job["project"], job["region"], job["dataflow_job_id"])
    assert (seen.min_workers, seen.max_workers) == (2, 5)


async def test_bounds_that_make_no_sense_are_refused(world: World) -> None:
    job = await world.insert(state="RUNNING")
    for body in (
        {},
        {"max_workers": 6},
        {"min_workers": 0},
        {"min_workers": 3, "max_workers": 2},
        {"min_workers": "2"},
    ):
        answer = await world.http.patch(f"/jobs/{job.id}/autoscaling", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), body
    assert not (await world.entry(job.id)).job.scaling_pending
    assert "UpdateJob" not in world.calls()


async def foreign(world: World, name: str = "somebody-elses") -> str:
    settings = world.settings
    launch = Launch(settings.project, settings.region, name, TEMPLATE, "foreign-token")
    return (await world.dataflow.launch(launch)).id


async def test_a_stranger_is_listed_adopted_and_managed_from_then_on(world: World) -> None:
    ours = await running(world)
    strange = await foreign(world)
    [listed] = (await world.http.get("/jobs/unmanaged")).json()["jobs"]
    assert (listed["dataflow_job_id"], listed["name"], listed["adoptable"]) == (
        strange,
        "somebody-elses",
        True,
    )
    assert ours["dataflow_job_id"] != strange
    adopted = await world.http.post("/jobs/adopt", json={"dataflow_job_id": strange})
    job = adopted.json()
    assert (adopted.status_code, adopted.headers["location"]) == (201, f"/jobs/{job['id']}")
    assert (job["adopted"], job["dataflow_job_id"], job["name"]) == (True, strange, "somebody-elses")
    assert (await world.http.get("/jobs/unmanaged")).json() == {"jobs": [], "truncated": False}
    again = await world.http.post("/jobs/adopt", json={"dataflow_job_id": strange})
    assert (again.status_code, again.json()["code"]) == (409, "already_managed")
    assert again.json()["job_id"] == job["id"]
    await world.until(job["id"], "RUNNING")
    await world.http.post(f"/jobs/{job['id']}/cancel")
    await world.until(job["id"], "CANCELLED")
    assert (await world.show(ours["id"]))["state"] == "RUNNING"


async def test_strangers_are_looked_for_with_one_list_and_no_other_call(world: World) -> None:
    for number in range(3):
        await foreign(world, f"stranger-{number}")
    before = world.calls()
    listed = (await world.http.get("/jobs/unmanaged")).json()["jobs"]
    assert [job["name"] for job in listed] == ["stranger-2", "stranger-1", "stranger-0"]
    calls = {name: count - before.get(name, 0) for name, count in world.calls().items()}
    assert {name: count for name, count in calls.items() if count} == {"ListJobs": 1}


async def test_a_job_whose_launch_is_not_answered_yet_is_no_stranger(world: World) -> None:
    world.fail(Fault("LaunchFlexTemplate", "UNAVAILABLE", after=True))
    job = await world.launch()
    assert job["dataflow_job_id"] is None
    assert (await world.http.get("/jobs/unmanaged")).json()["jobs"] == []


async def test_who_cannot_be_adopted_is_told_why(world: World) -> None:
    unknown = await world.http.post("/jobs/adopt", json={"dataflow_job_id": "2026-01-01_00_00_00-123"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "dataflow_job_not_found")
    world.fail(*outage())
    for answer in (
        await world.http.post("/jobs/adopt", json={"dataflow_job_id": "some"}),
        await world.http.get("/jobs/unmanaged"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (503, "dataflow_unavailable")
        assert answer.headers["retry-after"]
    for body in ({}, {"dataflow_job_id": "a/b"}, {"dataflow_job_id": "a", "region": "../x"}):
        assert (await world.http.post("/jobs/adopt", json=body)).status_code == 422
