"""Liveness, readiness with its causes, and the version."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta

import pytest
import sqlalchemy.event

from service import clients as google_clients
from service.app import create_app
from service.breaker import Breaker
from service.clients import Clients
from service.config import Settings
from service.dataflow import Dataflow
from service.db import migrate, schema
from service.health import Readiness
from service.lease import Lease
from service.local.dataflow import DataflowServer
from service.local.faults import Fault
from service.models import utc_now
from service.outbox import Outbox
from service.reconciler import LEASE, Reconciler
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
        pubsub_with_topic(tmp_path, database_url=url, allow_unauthenticated_access=True) as (
            _,
            settings,
            _reader,
        ),
        serving(settings) as client,
    ):
        response = await client.get("/readyz")
        assert (response.status_code, response.json()["status"]) == (200, "degraded")
        assert response.json()["outbox"] is None
        answer = await client.post("/events/signin", content=ARTICLE, headers=JSON)
        assert (answer.status_code, answer.json()["status"]) == (202, "published")


async def test_a_process_that_has_never_read_the_keys_is_not_ready_for_it_lets_nobody_in(tmp_path):
    url = f"postgresql://nobody@{NOBODY}/nothing"
    async with (
        pubsub_with_topic(tmp_path, database_url=url) as (_, settings, _reader),
        serving(settings) as client,
    ):
        problem = assert_problem(await client.get("/readyz"), 503, "not_ready")
        assert "keys: they could not be read since the start" in problem["detail"]
        answer = await client.post("/events/signin", content=ARTICLE, headers=JSON)
        assert_problem(answer, 503, "authentication_unavailable")


async def test_a_topic_that_takes_no_events_is_a_cause_though_it_can_be_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("service.health.readiness.CACHE_SECONDS", 0.0)
    async with (
        pubsub_with_topic(tmp_path, breaker_failures=1) as (server, settings, _),
        serving(settings) as client,
    ):
        await asyncio.to_thread(migrate, settings)
        server.faults.set([Fault(method="Publish", code="UNAVAILABLE")])
        answer = await client.post("/events/signin", content=ARTICLE, headers=JSON)
        assert answer.json().get("status") == "spooled", answer.text
        ready = (await client.get("/readyz")).json()
        assert ready["status"] == "degraded"
        assert ready["dependencies"]["pubsub"]["cause"].startswith("Publish fails with UNAVAILABLE")


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        ("PERMISSION_DENIED", "this service may not publish to the topic"),
        ("NOT_FOUND", "there is no such topic"),
        ("UNAUTHENTICATED", "the credentials of this service are not accepted"),
    ],
)
async def test_a_topic_that_is_closed_degrades_the_service_and_takes_it_out_when_the_outbox_is_full(
    tmp_path, monkeypatch, database_url, code, meaning
):
    monkeypatch.setattr("service.health.readiness.CACHE_SECONDS", -1.0)
    limits = {"outbox_max_rows": 4, "breaker_failures": 1, "database_url": database_url}
    async with pubsub_with_topic(tmp_path, **limits) as (server, settings, _), serving(settings) as client:
        server.faults.set([Fault(method="Publish", code=code)])
        answer = await client.post("/events/signin", content=ARTICLE, headers=JSON)
        assert (answer.status_code, answer.json()["status"]) == (202, "spooled")
        ready = await client.get("/readyz")
        told = ready.json()
        assert (ready.status_code, told["status"]) == (200, "degraded"), told
        assert told["dependencies"]["pubsub"]["cause"] == (
            f"Publish fails with {code} ({meaning}): sign-ins go to the outbox"
        )
        assert told["outbox"]["parked"] == 0
        while (answer := await client.post("/events/signin", content=ARTICLE, headers=JSON)).is_success:
            pass
        assert_problem(answer, 503, "outbox_full")
        problem = assert_problem(await client.get("/readyz"), 503, "not_ready")
        assert meaning in problem["detail"]
        assert "the outbox is full" in problem["detail"]


async def test_a_disk_that_is_full_while_pubsub_is_away_takes_the_service_out(tmp_path, monkeypatch):
    monkeypatch.setattr("service.health.readiness.CACHE_SECONDS", -1.0)
    async with pubsub_with_topic(tmp_path, breaker_failures=1) as (server, settings, _):
        await asyncio.to_thread(migrate, settings)
        app = create_app(settings)
        async with running(app) as client:
            server.faults.set([Fault(method="Publish", code="UNAVAILABLE")])
            await client.post("/events/signin", content=ARTICLE, headers=JSON)
            assert (await client.get("/readyz")).status_code == 200
            most_pages = 1  # SQLite takes it for as many as there are

            @sqlalchemy.event.listens_for(app.state.database._engine.sync_engine, "checkout")
            def checked_out(connection, _record, _proxy):
                connection.cursor().execute(f"PRAGMA max_page_count = {most_pages}")

            while (answer := await client.post("/events/signin", content=ARTICLE, headers=JSON)).is_success:
                pass
            assert "The disk of the metadata database is full." in answer.json()["detail"]
            problem = assert_problem(await client.get("/readyz"), 503, "not_ready")
            app.state.outbox._broken_until = 0.0  # as after the pause in which nobody asks
            problem = assert_problem(await client.get("/readyz"), 503, "not_ready")
            told = problem["dependencies"]["outbox"]
            assert (told["ok"], told["cause"]) == (False, "The disk of the metadata database is full.")
            most_pages = 1_000_000
            assert (await client.get("/readyz")).status_code == 200


@contextmanager
def databases_that_go_away():
    """Yields an event: while it is set nobody gets a connection."""
    are_away = threading.Event()

    def refuse(*_):
        if are_away.is_set():
            raise sqlalchemy.exc.OperationalError("connect", None, OSError("no connection"))

    sqlalchemy.event.listen(sqlalchemy.Pool, "checkout", refuse)
    try:
        yield are_away
    finally:
        sqlalchemy.event.remove(sqlalchemy.Pool, "checkout", refuse)


async def test_with_the_database_away_the_service_is_ready_again_as_soon_as_the_topic_is(
    tmp_path, monkeypatch, database_url
):
    monkeypatch.setattr("service.health.readiness.CACHE_SECONDS", -1.0)
    values = {"database_url": database_url, "breaker_failures": 1, "breaker_open_seconds": 0.05}
    with databases_that_go_away() as are_away:
        async with pubsub_with_topic(tmp_path, **values) as (server, settings, _):
            await asyncio.to_thread(migrate, settings)
            app = create_app(settings)
            async with running(app) as client:
                await client.get("/readyz")  # from now on it is known who is let in
                are_away.set()
                away = [Fault(method=name, code="UNAVAILABLE") for name in ("Publish", "GetTopic")]
                server.faults.set(away)
                answer = await client.post("/events/signin", content=ARTICLE, headers=JSON)
                assert_problem(answer, 503, "publish_unavailable")
                await until(lambda: app.state.breaker.is_untried)
                problem = assert_problem(await client.get("/readyz"), 503, "not_ready")
                assert problem["dependencies"]["pubsub"]["cause"] == "UNAVAILABLE"
                server.faults.set([])
                ready = await client.get("/readyz")  # though no sign-in has come that could have tried it
                assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
                assert ready.json()["dependencies"]["pubsub"]["ok"]
                answer = await client.post("/events/signin", content=ARTICLE, headers=JSON)
                assert (answer.status_code, answer.json()["status"]) == (202, "published")
                are_away.clear()


async def test_the_log_says_once_what_is_wrong_with_the_topic_and_once_that_it_is_over(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="service")
    async with pubsub_with_topic(tmp_path, breaker_open_seconds=0.05) as (server, settings, _):
        await asyncio.to_thread(migrate, settings)
        app = create_app(settings)
        async with running(app) as client:
            server.faults.set([Fault(method="Publish", code="PERMISSION_DENIED")])
            for _ in range(10):
                answer = await client.post("/events/signin", content=ARTICLE, headers=JSON)
                assert answer.json()["status"] == "spooled"
            assert app.state.breaker.cause == "PERMISSION_DENIED"
            server.faults.set([])
            await until(lambda: app.state.breaker.is_closed)
    told = [each for each in caplog.records if each.getMessage().startswith("Pub/Sub takes")]
    assert [each.levelname for each in told] == ["ERROR", "INFO"]
    assert all(settings.topic_path in each.getMessage() for each in told)
    assert "may not publish to the topic (PERMISSION_DENIED)" in told[0].getMessage()


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


async def test_who_looks_at_the_jobs_and_when_it_did_is_told_by_every_replica(tmp_path, database_url):
    settings = settings_for(tmp_path, database_url=database_url)
    apps = [create_app(settings) for _ in range(2)]
    async with running(apps[0]) as first:
        await until(lambda: apps[0].state.reconciler.last_tick)
        async with running(apps[1]) as second:
            for client in (first, second):
                problem = await client.get("/readyz")
                assert problem.status_code == 200, problem.text
            own, other = [(await client.get("/readyz")).json()["lease"] for client in (first, second)]
    assert own["holder"] == other["holder"]
    assert own["holder"].startswith(f"{socket.gethostname()[-40:]}-{os.getpid()}-")
    assert (own["is_this_process"], other["is_this_process"]) == (True, False)
    assert own["is_held"]
    assert own["last_tick"]["outcome"] == "complete"
    assert other["last_tick"] is None
    assert 0 <= own["age_seconds"] < settings.reconcile_lease_seconds


async def test_jobs_at_which_no_replica_looks_are_told(tmp_path, database, database_url):
    settings = settings_for(tmp_path, database_url=database_url)
    clients = Clients(settings)
    reconciler = Reconciler(database, Dataflow(clients, settings), settings)  # nobody runs it
    breaker = Breaker(failures=1, open_seconds=1, probe_seconds=1)
    readiness = Readiness(settings, clients, database, Outbox(database, settings), breaker, reconciler)
    try:
        assert (await readiness.dependencies())["reconciler"].ok  # it has not had the time
        assert readiness.lease is None
        earlier = utc_now() - timedelta(hours=1)
        gone = Lease(database, LEASE, settings.reconcile_lease_seconds, lambda: earlier)
        assert await gone.take()
        readiness._asked_at = float("-inf")
        found = (await readiness.dependencies())["reconciler"]
        assert found.cause == "no replica has looked at the jobs for 3585 s"
        assert readiness.lease.holder == gone.holder
        assert not readiness.lease.is_held
        assert readiness.lease.renewed_at == earlier
    finally:
        await clients.close()
