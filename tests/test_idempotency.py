"""Idempotency-Key: a request takes effect once, however often and however concurrently it is sent."""

from __future__ import annotations

import asyncio

import pytest
from sqlmodel import func, select

from service.idempotency import SWEPT_AT_ONCE, keyed, sweep
from service.job_bodies import NewJob
from service.jobs.launch import commit_job
from service.local.faults import Fault
from service.models import IdempotencyKey
from tests.job_world import STRICT_TEMPLATE, World, make_world

KEY = {"Idempotency-Key": "order-66"}


async def keys(world: World) -> int:
    async with world.database.session() as session:
        return (await session.exec(select(func.count()).select_from(IdempotencyKey))).one()


async def jobs_of(world: World) -> list[str]:
    return [job["id"] for job in (await world.http.get("/jobs")).json()["jobs"]]


async def test_the_same_request_again_is_answered_from_memory(world: World) -> None:
    first = await world.http.post("/jobs", json={"name": "once"}, headers=KEY)
    await world.until(first.json()["id"], "RUNNING")
    again = await world.http.post("/jobs", json={"name": "once"}, headers=KEY)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert "idempotency-replayed" not in first.headers
    assert world.calls()["LaunchFlexTemplate"] == 1


async def test_what_was_answered_is_answered_again_under_stricter_settings(world: World) -> None:
    body = {"environment": {"max_workers": 5}}
    first = await world.http.post("/jobs", json=body, headers=KEY)
    world.desk.settings = world.settings.model_copy(update={"max_workers": 1})
    again = await world.http.post("/jobs", json=body, headers=KEY)
    assert (again.status_code, again.content) == (202, first.content)
    assert (await world.http.post("/jobs", json=body)).status_code == 422


async def test_the_order_of_members_and_the_quotes_of_a_key_make_no_other_request(world: World) -> None:
    body = b'{"name": "once", "parameters": {"gate": "", "break_with": ""}}'
    same = b'{"parameters": {"break_with": "", "gate": ""}, "name": "once"}'
    as_json = {"Content-Type": "application/json"}
    first = await world.http.post("/jobs", content=body, headers=KEY | as_json)
    quoted = {"Idempotency-Key": '"order-66"'}
    again = await world.http.post("/jobs", content=same, headers=quoted | as_json)
    assert again.json()["id"] == first.json()["id"]


async def test_another_body_under_the_same_key_is_refused(world: World) -> None:
    await world.http.post("/jobs", json={"name": "once"}, headers=KEY)
    other = await world.http.post("/jobs", json={"name": "twice"}, headers=KEY)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    assert len(await jobs_of(world)) == 1


async def test_a_key_that_is_none_is_refused(world: World) -> None:
    for key in ("", " ", "two words", "x" * 201, "ümlaut".encode("latin-1")):
        answer = await world.http.post("/jobs", json={}, headers=[("Idempotency-Key", key)])
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_idempotency_key"), key
    assert await jobs_of(world) == []


async def test_fifty_requests_at_once_under_one_key_are_one_launch(world: World) -> None:
    body = {"shared_subscription": True}
    answers = await asyncio.gather(*(world.http.post("/jobs", json=body, headers=KEY) for _ in range(50)))
    ids = {answer.json()["id"] for answer in answers if answer.status_code == 202}
    others = {(answer.status_code, answer.json()["code"]) for answer in answers if answer.status_code != 202}
    assert len(ids) == 1
    assert others <= {(409, "idempotency_in_flight")}
    assert world.calls()["LaunchFlexTemplate"] == 1
    assert await jobs_of(world) == list(ids)
    late = await world.http.post("/jobs", json=body, headers=KEY)
    assert (late.status_code, late.json()["id"]) == (202, ids.pop())


async def test_a_request_whose_twin_is_under_way_is_told_so(world: World) -> None:
    world.fail(Fault("LaunchFlexTemplate", hold=True))
    first = asyncio.create_task(world.http.post("/jobs", json={}, headers=KEY))
    await world.server.faults.until_held("LaunchFlexTemplate")
    twin = await world.http.post("/jobs", json={}, headers=KEY)
    assert (twin.status_code, twin.json()["code"]) == (409, "idempotency_in_flight")
    assert 1 <= int(twin.headers["retry-after"]) <= 5
    world.fail()
    answer = await first
    assert answer.status_code == 202
    again = await world.http.post("/jobs", json={}, headers=KEY)
    assert again.content == answer.content


async def test_what_a_dead_process_has_begun_is_found_and_not_done_again(world: World) -> None:
    """The job and its key are committed, and the process dies before it calls Dataflow."""
    asked = NewJob()
    job = await commit_job(asked, world.desk, keyed("order-66", "POST /jobs", asked, "api"), "api")
    early = await world.http.post("/jobs", json={}, headers=KEY)
    assert early.json()["code"] == "idempotency_in_flight"
    world.clock.advance(seconds=60)
    late = await world.http.post("/jobs", json={}, headers=KEY)
    assert (late.status_code, late.json()["id"]) == (202, job.id)
    assert late.headers["idempotency-replayed"] == "true"
    assert late.headers["location"] == f"/jobs/{job.id}"
    await world.until(job.id, "RUNNING")
    assert world.calls()["LaunchFlexTemplate"] == 1
    assert await jobs_of(world) == [job.id]


async def test_a_request_that_had_no_effect_leaves_its_key_free(world: World) -> None:
    holder = await world.launch()
    await world.until(holder["id"], "RUNNING")
    refused = await world.http.post("/jobs", json={}, headers=KEY)
    assert refused.json()["code"] == "subscription_in_use"
    assert await keys(world) == 0
    await world.http.post(f"/jobs/{holder['id']}/cancel")
    await world.until(holder["id"], "CANCELLED")
    assert (await world.http.post("/jobs", json={}, headers=KEY)).status_code == 202


async def test_a_refusal_of_dataflow_is_an_answer_like_any_other(tmp_path, database_url: str) -> None:
    async with make_world(tmp_path, database_url, template_path=STRICT_TEMPLATE) as world:
        body = {"parameters": {"colour": "red"}}
        first = await world.http.post("/jobs", json=body, headers=KEY)
        again = await world.http.post("/jobs", json=body, headers=KEY)
        assert (first.status_code, first.json()["code"]) == (422, "invalid_parameters")
        assert (again.status_code, again.content) == (422, first.content)
        assert again.headers["content-type"] == "application/problem+json"
        assert world.calls()["LaunchFlexTemplate"] == 1


@pytest.mark.parametrize("action", ["drain", "cancel"])
async def test_a_stop_under_a_key_is_asked_for_once(action: str, world: World) -> None:
    job = await world.launch()
    await world.until(job["id"], "RUNNING")
    path = f"/jobs/{job['id']}/{action}"
    first = await world.http.post(path, headers=KEY)
    again = await world.http.post(path, headers=KEY)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.content == first.content
    assert (await world.http.post(path, headers={"Idempotency-Key": "other"})).status_code == 200
    assert (await world.history(job["id"])).count(f"{action}_requested") == 1


async def test_one_key_on_two_addresses_is_two_requests(world: World) -> None:
    job = await world.launch()
    await world.until(job["id"], "RUNNING")
    assert (await world.http.post(f"/jobs/{job['id']}/drain", headers=KEY)).status_code == 202
    cancelled = await world.http.post(f"/jobs/{job['id']}/cancel", headers=KEY)
    assert cancelled.status_code in (202, 409)  # the drain may be done by now
    assert "idempotency-replayed" not in cancelled.headers


async def test_an_act_that_is_not_allowed_leaves_its_key_free(world: World) -> None:
    job = await world.insert(state="DRAINED", ended_at=world.clock())
    path = f"/jobs/{job.id}/cancel"
    assert (await world.http.post(path, headers=KEY)).json()["code"] == "action_not_allowed"
    assert await keys(world) == 0


async def test_an_unknown_job_takes_no_key(world: World) -> None:
    answer = await world.http.post(f"/jobs/{'0' * 20}/cancel", headers=KEY)
    assert answer.status_code == 404
    assert await keys(world) == 0


async def test_an_update_that_a_dead_process_has_begun_is_not_made_twice(world: World) -> None:
    job = await world.launch()
    await world.until(job["id"], "RUNNING")
    path = f"/jobs/{job['id']}/update"
    first = await world.http.post(path, json={}, headers=KEY)
    assert first.status_code == 202, first.text
    async with world.database.transaction() as session:  # as if it had died before it kept its answer
        row = (await session.exec(select(IdempotencyKey))).one()
        row.status = row.body = None
    world.clock.advance(seconds=60)
    again = await world.http.post(path, json={}, headers=KEY)
    assert again.status_code == 202
    updates = [each for each in again.json()["attempts"] if each["kind"] == "update"]
    assert len(updates) == 1


async def test_a_key_is_forgotten_after_a_day(world: World) -> None:
    body = {"shared_subscription": True}
    first = await world.http.post("/jobs", json=body, headers=KEY)
    world.clock.advance(hours=23)
    assert (await world.http.post("/jobs", json=body, headers=KEY)).json()["id"] == first.json()["id"]
    world.clock.advance(hours=2)
    assert (await world.http.post("/jobs", json=body, headers=KEY)).json()["id"] != first.json()["id"]


async def test_old_keys_are_swept_some_at_a_time(world: World) -> None:
    now = world.clock()
    async with world.database.transaction() as session:
        session.add_all(
            IdempotencyKey(scope="s", key=str(n), request_hash="", created_at=now, locked_until=now)
            for n in range(SWEPT_AT_ONCE + 5)
        )
    world.clock.advance(hours=25)
    for left in (5, 0):
        async with world.database.transaction() as session:
            await sweep(session, world.clock())
        assert await keys(world) == left


def test_the_same_key_of_another_caller_is_another_key() -> None:
    mine, again, theirs = (keyed("order-66", "POST /jobs", None, by) for by in ("key:a", "key:a", "key:b"))
    assert mine is not None
    assert theirs is not None
    assert mine == again
    assert mine.scope != theirs.scope
    longest = keyed("order-66", "POST /" + "x" * 500, None, "token:" + "s" * 128)
    assert longest is not None
    assert len(longest.scope) == 128
