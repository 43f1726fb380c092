"""Liveness, readiness with its causes, and the version."""

from __future__ import annotations

import asyncio
import time

from service.app import create_app
from service.config import Settings
from service.db import schema
from service.local.dataflow import DataflowServer
from service.local.faults import Fault
from tests.serving import ARTICLE, JSON, NOBODY, assert_problem, pubsub_with_topic, serving, settings_for


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
    async with (
        DataflowServer(tmp_path / "dataflow") as dataflow,
        pubsub_with_topic(tmp_path, dataflow_emulator_host=dataflow.address, database_url=database_url) as (
            _,
            settings,
            _reader,
        ),
        serving(settings) as client,
    ):
        response = await client.get("/readyz")
        assert response.status_code == 200, response.text
        found = response.json()["dependencies"]
        assert found.keys() == {"database", "pubsub", "dataflow", "outbox"}
        assert all(each["ok"] and each["cause"] is None and each["latency_ms"] > 0 for each in found.values())


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
        assert problem["dependencies"]["database"] | {"latency_ms": 0} == {
            "ok": False,
            "cause": "The metadata database did not answer.",
            "latency_ms": 0,
        }


async def test_a_dependency_that_hangs_does_not_hold_up_the_answer(tmp_path, monkeypatch):
    async with pubsub_with_topic(tmp_path) as (server, settings, _), serving(settings) as client:
        await client.get("/readyz")  # the first one also imports Google's libraries
        monkeypatch.setattr("service.health.CHECK_DEADLINE_SECONDS", 0.3)
        monkeypatch.setattr("service.health.CACHE_SECONDS", 0.0)
        server.faults.set([Fault(method="GetTopic", delay_seconds=60)])
        started = time.monotonic()
        problem = assert_problem(await client.get("/readyz"), 503, "not_ready")
        assert time.monotonic() - started < 1.5
        assert problem["dependencies"]["pubsub"]["cause"] in ("no answer within 0.3 s", "DEADLINE_EXCEEDED")


async def test_many_questions_at_once_ask_the_dependencies_once(tmp_path):
    async with pubsub_with_topic(tmp_path) as (server, settings, _), serving(settings) as client:
        await asyncio.gather(*(client.get("/readyz") for _ in range(50)))
        assert server.faults.calls["GetTopic"] == 1


async def test_readiness_is_found_again_after_an_outage(tmp_path, monkeypatch):
    monkeypatch.setattr("service.health.CACHE_SECONDS", 0.0)
    async with (
        pubsub_with_topic(tmp_path) as (server, settings, _),
        serving(settings) as client,
    ):
        server.faults.set([Fault(method="GetTopic", code="UNAVAILABLE")])
        assert (await client.get("/readyz")).json()["dependencies"]["pubsub"]["ok"] is False
        server.faults.set([])
        assert (await client.get("/readyz")).json()["dependencies"]["pubsub"]["ok"] is True


async def test_without_pubsub_the_service_is_degraded_but_takes_sign_ins_and_shows_what_waits(
    tmp_path, database_url
):
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url) as (server, settings, _reader),
        serving(settings) as client,
    ):
        server.faults.set([Fault(code="UNAVAILABLE")])
        for _ in range(5):
            answer = await client.post("/events/signin", content=ARTICLE, headers=JSON)
            assert (answer.status_code, answer.json()["status"]) == (202, "spooled")
            assert answer.json()["message_id"] is None
        response = await client.get("/readyz")
        assert response.status_code == 200, response.text
        assert response.json()["status"] == "degraded"
        waiting = response.json()["outbox"]
        assert (waiting["events"], waiting["parked"], waiting["breaker"] == "closed") == (5, 0, False)
        assert waiting["oldest_age_seconds"] >= 0


async def test_without_a_database_the_service_takes_sign_ins_as_long_as_the_topic_answers(tmp_path):
    url = f"postgresql://nobody@{NOBODY}/nothing"
    async with (
        pubsub_with_topic(tmp_path, database_url=url) as (_, settings, _reader),
        serving(settings) as client,
    ):
        response = await client.get("/readyz")
        assert (response.status_code, response.json()["status"]) == (200, "degraded")
        assert response.json()["outbox"] is None
