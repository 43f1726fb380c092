"""What readiness tells while Pub/Sub, the database or the disk is away, and when each is back."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import contextmanager

import pytest
import sqlalchemy.event

from service.app import create_app
from service.db import migrate
from service.local.faults import Fault
from tests.serving import ARTICLE, JSON, NOBODY, assert_problem, pubsub_with_topic, running, serving, until


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
