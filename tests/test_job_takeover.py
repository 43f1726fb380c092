"""What two want at once: a Dataflow job that two jobs claim, and a drain that somebody else began."""

from __future__ import annotations

import sqlalchemy.exc

from service import job_store
from service.dataflow import Launch
from service.local.faults import Fault
from tests.job_world import TEMPLATE, World


async def lost_answer(world: World) -> tuple[str, str]:
    """A job whose launch had an effect and no answer, and the Dataflow job that it made."""
    world.fail(Fault("LaunchFlexTemplate", "UNAVAILABLE", after=True))
    job = await world.launch()
    world.fail()
    [seen] = await world.dataflow_jobs(job["name"])
    return job["id"], seen.id


async def test_what_an_own_unanswered_launch_made_is_not_adopted(world: World) -> None:
    job_id, made = await lost_answer(world)
    answer = await world.http.post("/jobs/adopt", json={"dataflow_job_id": made})
    assert (answer.status_code, answer.json()["code"]) == (409, "already_managed")
    assert answer.json()["job_id"] == job_id
    running = await world.until(job_id, "RUNNING")
    assert running["dataflow_job_id"] == made


async def test_what_somebody_put_in_the_place_of_a_managed_job_is_not_adopted(world: World) -> None:
    job = await world.until((await world.launch())["id"], "RUNNING")
    other = Launch(job["project"], job["region"], job["name"], TEMPLATE, "somebody-else")
    successor = (await world.dataflow.launch(other, update=True)).id
    answer = await world.http.post("/jobs/adopt", json={"dataflow_job_id": successor})
    assert (answer.status_code, answer.json()["job_id"]) == (409, job["id"])


async def test_an_adopted_job_holds_the_subscription_that_it_reads(world: World) -> None:
    settings = world.settings
    reads = {"input_subscription": settings.subscription_path}
    theirs = Launch(settings.project, settings.region, "theirs", TEMPLATE, "a-token", parameters=reads)
    strange = (await world.dataflow.launch(theirs)).id
    adopted = await world.http.post("/jobs/adopt", json={"dataflow_job_id": strange})
    assert adopted.json()["subscription"] == settings.subscription_path
    answer = await world.http.post("/jobs", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "subscription_in_use")
    assert answer.json()["job_id"] == adopted.json()["id"]


async def hold(world: World, dataflow_job_id: str) -> str:
    """A job that already has the Dataflow job, as an older release adopted it."""
    return (await world.insert(dataflow_job_id=dataflow_job_id, state="RUNNING")).id


async def test_a_launch_whose_job_another_one_has_ends_and_says_so(world: World) -> None:
    job_id, made = await lost_answer(world)
    holder = await hold(world, made)
    ended = await world.until(job_id, "REJECTED")
    assert ended["cause"] == f"The job {holder} manages the Dataflow job {made}."
    assert (await world.until(holder, "RUNNING"))["dataflow_job_id"] == made
    assert await world.reconciler.tick()


async def test_a_job_whose_successor_another_one_has_ends_as_updated(world: World) -> None:
    job = await world.until((await world.launch())["id"], "RUNNING")
    other = Launch(job["project"], job["region"], job["name"], TEMPLATE, "somebody-else")
    successor = (await world.dataflow.launch(other, update=True)).id
    holder = await hold(world, successor)
    ended = await world.until(job["id"], "UPDATED")
    assert ended["cause"] == f"The job {holder} manages the Dataflow job {successor}."


async def test_a_job_whose_look_breaks_does_not_keep_the_others_waiting(
    world: World, monkeypatch, caplog
) -> None:
    broken = await world.insert(launch_token="a")
    sound = await world.launch(shared_subscription=True)
    look = world.reconciler.control.look

    async def breaking(lineage, listed):
        if lineage.job.id == broken.id:
            raise sqlalchemy.exc.IntegrityError("INSERT", {}, Exception("UNIQUE"))
        return await look(lineage, listed)

    monkeypatch.setattr(world.reconciler.control, "look", breaking)
    await world.until(sound["id"], "RUNNING")
    assert not await world.reconciler.tick()
    assert f"the look at job {broken.id} broke" in caplog.text


async def test_a_drain_that_somebody_else_began_keeps_the_deadline_it_is_given(world: World) -> None:
    job = await world.until((await world.launch())["id"], "RUNNING")
    [local] = world.server._fleet.active()
    world.server._fleet._workers[local.id].stop = lambda *_: None  # a worker that does not finish
    await world.dataflow.request_state(job["project"], job["region"], job["dataflow_job_id"], "DRAINED")
    await world.until(job["id"], "DRAINING")
    body = {"deadline_seconds": 60, "on_deadline": "cancel"}
    answer = await world.http.post(f"/jobs/{job['id']}/drain", json=body)
    assert (answer.status_code, answer.json()["requested_state"]) == (200, "DRAINED")
    assert (await world.http.post(f"/jobs/{job['id']}/drain", json=body)).status_code == 200
    assert (await world.history(job["id"])).count("drain_requested") == 1
    world.clock.advance(seconds=61)
    await world.reconciler.tick()
    assert (await world.entry(job["id"])).job.requested_state == "CANCELLED"
    del world.server._fleet._workers[local.id].stop
    world.server._fleet._workers[local.id].kill("the test is over")
    await world.until(job["id"], "CANCELLED")


async def stuck_drain(world: World, **body: object) -> str:
    """A drain that Dataflow does not take."""
    job = await world.until((await world.launch())["id"], "RUNNING")
    world.fail(Fault("UpdateJob", "UNAVAILABLE"))
    assert (await world.http.post(f"/jobs/{job['id']}/drain", json=body)).status_code == 202
    return job["id"]


async def test_a_deadline_given_later_counts_from_then(world: World) -> None:
    job_id = await stuck_drain(world)
    world.clock.advance(hours=1)
    given_at = world.clock()
    body = {"deadline_seconds": 600, "on_deadline": "cancel"}
    assert (await world.http.post(f"/jobs/{job_id}/drain", json=body)).status_code == 200
    deadline = job_store.drain_deadline((await world.entry(job_id)).job)
    assert deadline is not None
    assert 600 <= (deadline - given_at).total_seconds() < 660
    shown = (await world.http.get(f"/jobs/{job_id}/metrics")).json()["drain"]["deadline_at"]
    assert shown == deadline.isoformat().replace("+00:00", "Z")
    world.clock.advance(seconds=540)
    await world.reconciler.tick()
    assert (await world.entry(job_id)).job.requested_state == "DRAINED"
    # The same request again does not put it off.
    assert (await world.http.post(f"/jobs/{job_id}/drain", json=body)).status_code == 200
    assert job_store.drain_deadline((await world.entry(job_id)).job) == deadline
    world.clock.advance(seconds=61)
    await world.reconciler.tick()
    assert (await world.entry(job_id)).job.requested_state == "CANCELLED"


async def test_the_same_deadline_given_after_it_has_passed_counts_anew(world: World) -> None:
    body = {"deadline_seconds": 600, "on_deadline": "wait"}
    job_id = await stuck_drain(world, **body)
    world.clock.advance(seconds=601)
    await world.reconciler.tick()
    again = world.clock()
    await world.http.post(f"/jobs/{job_id}/drain", json=body)
    deadline = job_store.drain_deadline((await world.entry(job_id)).job)
    assert deadline is not None
    assert deadline > again
    assert (await world.history(job_id)).count("drain_deadline_set") == 1


async def test_an_overdue_drain_that_dataflow_does_not_take_is_told_once(world: World) -> None:
    job_id = await stuck_drain(world, deadline_seconds=60, on_deadline="wait")
    world.clock.advance(seconds=61)
    for _ in range(5):
        await world.reconciler.tick()
    history = await world.history(job_id)
    assert [history.count(kind) for kind in ("drain_deadline_passed", "stop_unanswered")] == [1, 1]


async def test_an_attempt_that_does_not_repeat_its_jobs_name_is_known_by_it(world: World) -> None:
    job_id, made = await lost_answer(world)
    async with world.database.transaction() as session:
        lineage = await job_store.lock(session, job_id)
        assert lineage
        lineage.attempt.job_name = None
    world.fail(Fault("GetJob", hide="labels"))
    answer = await world.http.post("/jobs/adopt", json={"dataflow_job_id": made})
    assert (answer.status_code, answer.json()["job_id"]) == (409, job_id)
