"""Liveness, readiness with its causes, the start, and the version."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from datetime import datetime

from service import clients as google_clients
from service.app import create_app
from service.config import Settings
from service.db import schema
from service.local.dataflow import DataflowServer
from service.local.faults import Fault
from service.models import utc_now
from tests.serving import (
    ARTICLE,
    JSON,
    NOBODY,
    assert_problem,
    pubsub_with_topic,
    running,
    serving,
    settings_for,
    until,
)


@asynccontextmanager
async def whole(tmp_path, database_url):
    """The service with all that it depends on: the local Dataflow, and a client of the service."""
    async with (
        DataflowServer(tmp_path / "dataflow") as dataflow,
        pubsub_with_topic(tmp_path, dataflow_emulator_host=dataflow.address, database_url=database_url) as (
            _,
            settings,
            _reader,
        ),
        serving(settings) as client,
    ):
        yield dataflow, client


async def test_the_process_is_alive_whatever_else_is_not(tmp_path):
    async with serving(settings_for(tmp_path)) as client:
        response = await client.get("/healthz")
        assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_the_version_is_told(tmp_path):
    async with serving(settings_for(tmp_path)) as client:
        version = (await client.get("/version")).json()
        assert version["name"] == "signin-pipeline"
        assert version["version"] == create_app(Settings(_env_file=None)).version


async def test_the_service_is_ready_when_everything_answers(tmp_path, database_url):
    async with whole(tmp_path, database_url) as (_, client):
        response = await client.get("/readyz")
        assert response.status_code == 200, response.text
        found = response.json()["dependencies"]
        assert found.keys() == {"database", "pubsub", "dataflow", "outbox", "reconciler"}
        assert all(each["ok"] and each["cause"] is None and each["latency_ms"] > 0 for each in found.values())
        assert all(each["last_ok_at"] == each["checked_at"] for each in found.values())


async def test_each_cause_of_not_being_ready_is_told(tmp_path, empty_database_url):
    async with (
        pubsub_with_topic(tmp_path, database_url=empty_database_url) as (server, settings, _),
        serving(settings) as client,
    ):
        server.faults.set([Fault(method="GetTopic", code="NOT_FOUND")])
        problem = assert_problem(await client.get("/readyz"), 503, "not_ready")
        causes = {name: each["cause"] for name, each in problem["dependencies"].items()}
        assert causes == {
            "database": schema.judge(set(), schema.revisions(), None).sentence,
            "pubsub": "NOT_FOUND",
            "dataflow": "UNAVAILABLE",
            "outbox": "The metadata database has not the tables of this version: run `signin migrate`.",
            "reconciler": "The metadata database has not the tables of this version: run `signin migrate`.",
        }
        assert not any(each["ok"] for each in problem["dependencies"].values())


async def test_without_dataflow_the_service_is_degraded_but_takes_sign_ins(tmp_path, database_url):
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url) as (_, settings, _reader),
        serving(settings) as client,
    ):
        response = await client.get("/readyz")
        assert response.status_code == 200
        assert response.json()["status"] == "degraded"
        assert response.json()["dependencies"]["dataflow"]["cause"] == "UNAVAILABLE"


async def test_a_region_that_dataflow_cannot_list_is_told(tmp_path, database_url, monkeypatch):
    monkeypatch.setattr("service.health.readiness.CACHE_SECONDS", -1.0)
    async with whole(tmp_path, database_url) as (dataflow, client):
        dataflow.faults.set([Fault(method="ListJobs", hide="location")])
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        told = ready.json()["dependencies"]["dataflow"]
        assert (told["ok"], told["cause"]) == (False, "Dataflow cannot list the jobs of us-central1")
        dataflow.faults.set([])
        assert (await client.get("/readyz")).json()["status"] == "ready"


async def test_a_publisher_that_may_not_look_at_its_topic_is_ready(tmp_path, database_url):
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url) as (server, settings, _reader),
        serving(settings) as client,
    ):
        server.faults.set([Fault(method="GetTopic", code="PERMISSION_DENIED")])
        response = await client.get("/readyz")
        assert response.status_code == 200
        assert response.json()["dependencies"]["pubsub"]["ok"]


async def test_a_database_that_is_not_there_is_told(tmp_path):
    url = f"postgresql://nobody@{NOBODY}/nothing"
    async with serving(settings_for(tmp_path, database_url=url)) as client:
        problem = assert_problem(await client.get("/readyz"), 503, "not_ready")
        told = problem["dependencies"]["database"]
        assert (told["ok"], told["cause"]) == (False, "The metadata database did not answer.")
        assert told["last_ok_at"] is None


async def test_a_dependency_that_hangs_does_not_hold_up_the_answer(tmp_path, monkeypatch):
    async with pubsub_with_topic(tmp_path) as (server, settings, _), serving(settings) as client:
        await client.get("/readyz")  # the first one also imports Google's libraries
        monkeypatch.setattr("service.health.readiness.CHECK_DEADLINE_SECONDS", 0.3)
        monkeypatch.setattr("service.health.readiness.CACHE_SECONDS", 0.0)
        server.faults.set([Fault(method="GetTopic", delay_seconds=60)])
        started = time.monotonic()
        problem = assert_problem(await client.get("/readyz"), 503, "not_ready")
        assert time.monotonic() - started < 10
        assert problem["dependencies"]["pubsub"]["cause"] in ("no answer within 0.3 s", "DEADLINE_EXCEEDED")


async def test_many_questions_at_once_ask_the_dependencies_once(tmp_path):
    async with pubsub_with_topic(tmp_path) as (server, settings, _), serving(settings) as client:
        await asyncio.gather(*(client.get("/readyz") for _ in range(50)))
        assert server.faults.calls["GetTopic"] == 1


async def test_readiness_is_found_again_after_an_outage(tmp_path, monkeypatch):
    monkeypatch.setattr("service.health.readiness.CACHE_SECONDS", 0.0)
    async with (
        pubsub_with_topic(tmp_path) as (server, settings, _),
        serving(settings) as client,
    ):
        server.faults.set([Fault(method="GetTopic", code="UNAVAILABLE")])
        assert (await client.get("/readyz")).json()["dependencies"]["pubsub"]["ok"] is False
        server.faults.set([])
        assert (await client.get("/readyz")).json()["dependencies"]["pubsub"]["ok"] is True


async def test_the_start_is_over_when_the_libraries_are_loaded(tmp_path):
    app = create_app(settings_for(tmp_path))
    with google_clients._import_lock:  # as while another import is under way
        async with running(app) as client:
            assert_problem(await client.get("/startupz"), 503, "starting")
            assert (await client.get("/healthz")).status_code == 200
            google_clients._import_lock.release()
            try:
                await until(lambda: app.state.lifetime.warm_after_seconds is not None)
            finally:
                google_clients._import_lock.acquire()
            answer = await client.get("/startupz")
            assert (answer.status_code, answer.json()["status"]) == (200, "started")
            assert answer.json()["after_seconds"] > 0


async def test_an_outage_elsewhere_does_not_keep_the_start_from_being_over(tmp_path):
    url = f"postgresql://nobody@{NOBODY}/nothing"
    app = create_app(settings_for(tmp_path, database_url=url))
    async with running(app) as client:
        await until(lambda: app.state.lifetime.warm_after_seconds is not None)
        assert (await client.get("/startupz")).status_code == 200


async def test_what_answers_get_answers_head_too_and_the_others_say_what_they_take(tmp_path):
    app = create_app(settings_for(tmp_path))
    async with running(app) as client:
        await until(lambda: app.state.lifetime.warm_after_seconds is not None)
        for path in ("/healthz", "/startupz", "/readyz", "/version"):
            asked = [await client.request(method, path) for method in ("GET", "HEAD")]
            assert asked[0].status_code == asked[1].status_code, path
        refused = await client.post("/healthz")
        assert_problem(refused, 405, "method_not_allowed")
        assert refused.headers["allow"] == "GET, HEAD"


async def test_it_is_told_since_when_a_dependency_is_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("service.health.readiness.CACHE_SECONDS", -1.0)
    async with pubsub_with_topic(tmp_path) as (server, settings, _), serving(settings) as client:

        async def told():
            return (await client.get("/readyz")).json()["dependencies"]["pubsub"]

        first, second = await told(), await told()
        assert first["since"] == first["last_ok_at"] == second["since"]
        assert second["age_seconds"] > first["age_seconds"] == 0
        server.faults.set([Fault(method="GetTopic", code="UNAVAILABLE")])
        third, fourth = await told(), await told()
        assert not third["ok"]
        assert third["since"] == fourth["since"] > second["checked_at"]
        assert fourth["last_ok_at"] == second["checked_at"]
        server.faults.set([])
        assert (await told())["since"] > fourth["checked_at"]


async def test_pubsub_was_last_well_when_it_last_took_an_event_though_nobody_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("service.health.readiness.CACHE_SECONDS", -1.0)
    async with pubsub_with_topic(tmp_path) as (server, settings, _), serving(settings) as client:

        async def told():
            found = (await client.get("/readyz")).json()["dependencies"]["pubsub"]
            return found["ok"], datetime.fromisoformat(found["last_ok_at"] or "0001-01-01T00:00Z")

        server.faults.set([Fault(method="GetTopic", code="UNAVAILABLE")])
        is_ok, last_ok_at = await told()
        assert (is_ok, last_ok_at.year) == (False, 1)
        before = utc_now()
        answer = await client.post("/events/signin", content=ARTICLE, headers=JSON)
        assert answer.json()["status"] == "published"
        after = utc_now()
        is_ok, last_ok_at = await told()
        assert not is_ok
        assert before <= last_ok_at <= after
