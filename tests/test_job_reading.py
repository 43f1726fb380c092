"""Reading jobs: every filter against a plain search, messages, metrics, what waits in the subscription."""

from __future__ import annotations

import asyncio
import itertools
import random
from datetime import timedelta
from pathlib import Path

import pytest
from google.pubsub_v1 import types

from service.clients import Clients
from service.dataflow import Distribution, SeenMetric, user_distributions
from service.job_metrics import Sample, handled, highest, next_sample
from service.job_state import STATES, TERMINAL_STATES
from service.local.faults import Fault
from service.local.monitoring import MonitoringServer
from service.local.pubsub import PubsubServer
from service.models import utc_now
from tests.job_world import World, make_world, outage
from tests.serving import Reader, settings_for

NOW = utc_now()


async def page_through(world: World, **query: object) -> list[str]:
    seen: list[str] = []
    token: str | None = None
    while True:
        asked = {"page_size": 3, **query} | ({"page_token": token} if token else {})
        answer = await world.http.get("/jobs", params=asked)
        assert answer.status_code == 200, answer.text
        seen += [job["id"] for job in answer.json()["jobs"]]
        token = answer.json()["next_page_token"]
        if not token:
            return seen


async def test_every_combination_of_filters_finds_what_a_plain_search_finds(world: World) -> None:
    chance = random.Random(4)
    rows = []
    for number in range(40):
        state = chance.choice(["RUNNING", "DRAINING", "DRAINED", "FAILED"])
        base = chance.choice(["nightly", "signins"])
        row = await world.insert(
            state=state,
            base_name=base,
            name=f"{base}-{number:010d}",
            pipeline=chance.choice(["audit", "user-signin"]),
            ended_at=world.clock() if state in TERMINAL_STATES else None,
        )
        rows.append(row)
    rows.sort(key=lambda row: (row.created_at, row.id), reverse=True)
    choices = itertools.product(
        [None, ["FAILED"], ["RUNNING", "DRAINED", "RUNNING"]],
        [None, True, False],
        [None, "nightly", rows[7].name],
        [None, "audit"],
    )
    for states, active, name, pipeline in choices:
        query = {"state": states, "active": active, "name": name, "pipeline": pipeline}
        found = await page_through(world, **{key: value for key, value in query.items() if value is not None})
        wanted = [
            row.id
            for row in rows
            if (states is None or row.state in states)
            and (active is None or active == (row.ended_at is None))
            and (name is None or name in (row.name, row.base_name))
            and (pipeline is None or row.pipeline == pipeline)
        ]
        assert found == wanted, query


async def test_every_state_may_be_asked_for_and_nothing_else(world: World) -> None:
    for state in STATES:
        assert (await world.http.get("/jobs", params={"state": state})).status_code == 200
    for state in ("SLEEPING", "running", "", "RUNNING,FAILED", "\0"):
        answer = await world.http.get("/jobs", params={"state": ["RUNNING", state]})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), state
        assert answer.json()["errors"][0]["field"] == "query.state"


async def test_messages_are_read_by_gravity_and_page_by_page(world: World) -> None:
    job = await world.launch()
    await world.until(job["id"], "RUNNING")
    path = f"/jobs/{job['id']}/messages"
    shown = (await world.http.get(path, params={"importance": "DEBUG"})).json()
    assert shown["dataflow_job_id"]
    assert not shown["stale"]
    assert len(shown["messages"]) >= 2
    assert [each["at"] for each in shown["messages"]] == sorted(each["at"] for each in shown["messages"])
    assert (await world.http.get(path, params={"importance": "ERROR"})).json()["messages"] == []
    first = (await world.http.get(path, params={"importance": "DEBUG", "page_size": 1})).json()
    query = {"importance": "DEBUG", "page_size": 1, "page_token": first["next_page_token"]}
    second = (await world.http.get(path, params=query)).json()
    assert [first["messages"][0], second["messages"][0]] == shown["messages"][:2]
    late = {"importance": "DEBUG", "since": (world.clock() + timedelta(hours=1)).isoformat()}
    assert (await world.http.get(path, params=late)).json()["messages"] == []


async def test_a_query_of_messages_that_makes_no_sense_is_refused(world: World) -> None:
    job = await world.launch()
    for query in ("importance=LOUD", "since=yesterday", "page_size=0", "attempt=9", "attempt=0"):
        answer = await world.http.get(f"/jobs/{job['id']}/messages?{query}")
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), query
    answer = await world.http.get(f"/jobs/{job['id']}/messages", params={"page_token": "nonsense"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_page_token")


async def test_many_who_ask_at_once_or_soon_after_cost_one_call(tmp_path: Path, database_url: str) -> None:
    async with make_world(tmp_path, database_url, reconcile_interval_seconds=60.0) as world:
        job = await world.launch()
        path = f"/jobs/{job['id']}"
        for _ in range(2):
            answers = await asyncio.gather(
                *(world.http.get(f"{path}/{what}") for what in ("messages", "metrics") for _ in range(10))
            )
            assert {answer.status_code for answer in answers} == {200}
        assert world.calls()["ListJobMessages"] == world.calls()["GetJobMetrics"] == 1


async def test_what_dataflow_said_before_is_told_while_it_is_away(world: World) -> None:
    job = await world.launch()
    await world.until(job["id"], "RUNNING")
    path = f"/jobs/{job['id']}"
    before = (await world.http.get(f"{path}/messages")).json()
    metrics = (await world.http.get(f"{path}/metrics")).json()
    world.fail(*outage())
    for kept in (world.desk.telemetry._pages, world.desk.telemetry._looks):
        kept._seconds = 0.0
    again = (await world.http.get(f"{path}/messages")).json()
    assert (again["stale"], again["messages"]) == (True, before["messages"])
    stale = (await world.http.get(f"{path}/metrics")).json()
    assert (stale["stale"], stale["counters"]) == (True, metrics["counters"])
    other = await world.http.get(f"{path}/messages", params={"importance": "ERROR"})
    assert (other.status_code, other.json()["code"]) == (503, "dataflow_unavailable")


async def test_a_job_that_dataflow_has_not_named_has_no_messages_and_no_metrics(world: World) -> None:
    job = await world.insert()
    assert (await world.http.get(f"/jobs/{job.id}/messages")).json()["messages"] == []
    shown = (await world.http.get(f"/jobs/{job.id}/metrics")).json()
    gaps = (
        "throughput_per_second",
        "freshness_seconds",
        "latency_seconds",
        "rows",
        "dead_letters",
        "counters",
    )
    assert [shown[name] for name in gaps] == [None] * len(gaps)
    assert shown["backlog"] == {"messages": None, "oldest_age_seconds": None, "observed_at": None}


async def test_a_job_that_has_ended_has_no_throughput_left(world: World) -> None:
    job = await world.launch()
    await world.until(job["id"], "RUNNING")
    await world.http.post(f"/jobs/{job['id']}/drain")
    await world.until(job["id"], "DRAINED")
    shown = (await world.http.get(f"/jobs/{job['id']}/metrics")).json()
    assert (shown["throughput_per_second"], shown["counters"]) == (0.0, {"rows": 6})


async def test_metrics_that_dataflow_does_not_give_are_gaps_and_not_zeros(world: World) -> None:
    job = await world.launch()
    await world.until(job["id"], "RUNNING")
    world.fail(Fault("GetJobMetrics", "INTERNAL"))
    shown = (await world.http.get(f"/jobs/{job['id']}/metrics")).json()
    assert (shown["stale"], shown["counters"], shown["rows"]) == (True, None, None)
    world.fail()
    shown = (await world.http.get(f"/jobs/{job['id']}/metrics")).json()
    assert (shown["stale"], shown["counters"]) == (False, {"rows": 4})
    assert shown["rows"] is None  # this job has no such counter


async def test_what_waits_in_the_subscription_is_told_as_monitoring_knows_it(tmp_path, database_url) -> None:
    async with PubsubServer() as pubsub, MonitoringServer(pubsub.broker) as monitoring:
        settings = settings_for(tmp_path, pubsub.address)
        clients = Clients(settings)
        try:
            reader = Reader(clients, settings)
            await reader.make_topic()
            waiting = types.PublishRequest.pb()(topic=settings.topic_path, messages=[{"data": b"x"}] * 3)
            await reader.call("Publisher", "Publish", waiting, types.PublishResponse.pb())
        finally:
            await clients.close()
        async with make_world(tmp_path, database_url, monitoring_endpoint=monitoring.url) as world:
            job = await world.launch()
            backlog = (await world.http.get(f"/jobs/{job['id']}/metrics")).json()["backlog"]
            assert backlog["messages"] == 3
            assert 0 <= backlog["oldest_age_seconds"] < 60
            assert backlog["observed_at"]
            other = {"input_subscription": "projects/signin-local/subscriptions/nobodys"}
            job = await world.launch(parameters=other)
            backlog = (await world.http.get(f"/jobs/{job['id']}/metrics")).json()["backlog"]
            assert backlog["messages"] is None  # not known is not zero


async def test_a_backlog_that_cannot_be_asked_for_is_a_gap(tmp_path, database_url) -> None:
    async with make_world(tmp_path, database_url, monitoring_endpoint="http://127.0.0.1:1") as world:
        job = await world.launch()
        answer = await world.http.get(f"/jobs/{job['id']}/metrics")
        assert (answer.status_code, answer.json()["backlog"]["messages"]) == (200, None)


@pytest.mark.parametrize(
    ("seconds", "count", "rate"),
    [(10, 150, 5.0), (10, 100, 0.0), (10, 90, None), (10, None, None), (301, 150, None)],
)
def test_a_rate_is_made_of_two_samples_and_a_gap_has_none(seconds, count, rate):
    before = Sample(NOW, 100, 1.0)
    assert next_sample(before, NOW + timedelta(seconds=seconds), count).rate == rate


def test_a_sample_that_follows_too_soon_or_is_the_first_says_nothing_new():
    before = Sample(NOW, 100, 1.0)
    assert next_sample(before, NOW + timedelta(seconds=0.5), 900) is before
    assert next_sample(None, NOW, 100).rate is None
    assert next_sample(Sample(NOW, None, None), NOW + timedelta(seconds=9), 100).rate is None


def system(name: str, value: float | None, step: str) -> SeenMetric:
    return SeenMetric(name, "dataflow/v1b3", value, original_name=f"{step}-{name}")


def test_system_metrics_are_the_worst_of_all_steps_and_user_counters_are_none_of_them():
    metrics = [
        system("SystemLag", 3.0, "a"),
        system("SystemLag", 7.0, "b"),
        system("SystemLag", None, "c"),
        SeenMetric("SystemLag", "user", 99.0),
    ]
    assert highest(metrics, "SystemLag") == 7.0
    assert highest(metrics, "DataWatermarkAge") is None


def test_a_distribution_is_that_of_all_steps_and_one_without_values_or_parts_is_left_out():
    def told(name: str, origin: str = "user", **parts: float) -> SeenMetric:
        return SeenMetric(name, origin, None, parts=parts)

    metrics = [
        told("age", count=2, sum=30, min=10, max=20, mean=15),
        told("age", count=1, min=6, max=6, mean=6),
        told("empty", count=0, sum=0, min=0, max=0),
        told("partly", count=1, max=3),
        told("vague", count=1, min=3, max=3),
        told("theirs", "dataflow/v1b3", count=1, sum=1, min=1, max=1),
    ]
    found = user_distributions(metrics)
    assert found == {"age": Distribution(count=3, sum=36, min=6, max=20)}
    assert found["age"].mean == 12


def test_what_a_job_handled_is_in_its_counters_or_in_its_busiest_collection():
    sizes = [system("ElementCount", 5.0, "a"), system("ElementCount", 8.0, "b")]
    own = [SeenMetric("signins_parsed", "user", 3.0), SeenMetric("dead_letters", "user", 1.0)]
    assert handled(sizes) == 8
    assert handled([*sizes, *own]) == 4
    assert handled([]) is None
