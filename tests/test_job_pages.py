"""What is read of jobs: in pages, narrowed, unknown, not changed, without counters, and their histories."""

from __future__ import annotations

import base64
import json

import pytest

from tests.job_world import World, outage


async def test_pages_hold_every_job_once_newest_first(world: World) -> None:
    ids = [(await world.insert()).id for _ in range(7)]
    seen: list[str] = []
    token = None
    while True:
        query = {"page_size": 3} | ({"page_token": token} if token else {})
        page = (await world.http.get("/jobs", params=query)).json()
        seen += [job["id"] for job in page["jobs"]]
        if not (token := page["next_page_token"]):
            break
        await world.insert()
    assert seen == ids[::-1]


async def test_lists_are_narrowed_by_state_activity_and_name(world: World) -> None:
    now = world.clock()
    plain = await world.insert()
    ended = await world.insert(state="DRAINED", ended_at=now)
    named = await world.insert(state="RUNNING", base_name="nightly", name="nightly-0123456789")

    async def ids(**query: object) -> list[str]:
        return [job["id"] for job in (await world.http.get("/jobs", params=query)).json()["jobs"]]

    assert await ids(active=True) == [named.id, plain.id]
    assert await ids(active=False) == [ended.id]
    assert await ids(state="RUNNING") == [named.id]
    assert await ids(name="nightly") == await ids(name="nightly-0123456789") == [named.id]
    assert await ids(name="night") == []


def page_token(created_at: str, job_id: str = "x") -> str:
    return base64.urlsafe_b64encode(json.dumps([created_at, job_id]).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "token",
    [
        *("!", "AAAA", "W10", "eyJhIjoxfQ", "x" * 200),
        page_token("0001-01-01T00:00:00+23:59"),
        page_token("9999-12-31T23:59:59-23:59"),
        page_token("2026-01-01T00:00:00Z", "\0"),
    ],
)
async def test_a_foreign_page_token_is_refused(token: str, world: World) -> None:
    answer = await world.http.get("/jobs", params={"page_token": token})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_page_token")


@pytest.mark.parametrize("query", ["page_size=0", "page_size=201", "state=%00", "name=A", "active=perhaps"])
async def test_a_query_that_does_not_fit_is_refused(query: str, world: World) -> None:
    assert (await world.http.get(f"/jobs?{query}")).status_code == 422


@pytest.mark.parametrize("job_id", ["x", "0" * 20, "%00", "A" * 20, "0" * 500])
async def test_an_unknown_job_is_not_found(job_id: str, world: World) -> None:
    for method, path in [("GET", ""), ("GET", "/events"), ("POST", "/drain"), ("POST", "/cancel")]:
        answer = await world.http.request(method, f"/jobs/{job_id}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


async def test_a_job_that_has_not_changed_is_not_sent_again(world: World) -> None:
    job = await world.insert(state="DRAINED", ended_at=world.clock())
    first = await world.http.get(f"/jobs/{job.id}")
    again = await world.http.get(f"/jobs/{job.id}", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = await world.http.get(f"/jobs/{job.id}", headers={"If-None-Match": '"other"'})
    assert other.status_code == 200


async def test_counters_are_left_out_while_dataflow_does_not_give_them(world: World) -> None:
    job = await world.launch()
    await world.until(job["id"], "RUNNING")
    world.fail(*outage("GetJobMetrics"))
    world.dataflow._counters.clear()
    assert (await world.show(job["id"]))["counters"] is None


async def test_the_history_is_read_on_from_a_sequence(world: World) -> None:
    job = await world.launch()
    everything = (await world.http.get(f"/jobs/{job['id']}/events")).json()["events"]
    assert [event["kind"] for event in everything] == ["created", "launch_started", "launched"]
    assert everything[0]["actor"] == "api"
    rest = await world.http.get(f"/jobs/{job['id']}/events", params={"after": everything[0]["sequence"]})
    assert rest.json()["events"] == everything[1:]


async def test_a_list_takes_several_states_and_no_name_that_it_does_not_know(world: World) -> None:
    assert (await world.http.get("/jobs?state=RUNNING&state=FAILED&page_size=1")).status_code == 200
    for query in ("bogus=1", "active=true&active=false"):
        assert (await world.http.get(f"/jobs?{query}")).status_code == 422
    for path in ("/jobs/nobody", "/jobs/nobody/events", "/jobs/unmanaged"):
        assert (await world.http.get(f"{path}?bogus=1")).status_code == 422, path
