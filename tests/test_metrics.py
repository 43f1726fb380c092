"""`GET /metrics`: what is counted, and that a scrape costs little."""

from __future__ import annotations

import asyncio
import time

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from service.clients import Clients
from service.config import Settings
from service.dataflow import Dataflow, DataflowError
from service.db import Database
from service.errors import OutboxFullError
from service.local.dataflow import DataflowServer
from service.local.faults import Fault
from service.metrics import Metrics
from service.metrics.families import BY_NAME, FAMILIES
from service.outbox import Outbox
from service.reconciler import Reconciler
from service.scrape import OUTBOX_DEADLINE_SECONDS, OutboxWatch
from tests.publishing import message, publishing
from tests.sample_metrics import exposed, scraped
from tests.serving import ARTICLE, JSON, pubsub_with_topic, serving, settings_for
from tests.serving import until as eventually


async def test_the_answer_is_prometheus_text_with_every_metric_and_its_meaning(tmp_path):
    async with serving(settings_for(tmp_path)) as client:
        response = await client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = {family.name: family for family in text_string_to_metric_families(response.text)}
    assert found.keys() == {family.name.removesuffix("_total") for family in FAMILIES}
    for family in FAMILIES:
        name = family.name.removesuffix("_total")
        assert found[name].type == family.kind
        assert found[name].documentation == family.meaning.replace("`", "")


async def test_whoever_asks_for_openmetrics_gets_it(tmp_path):
    async with serving(settings_for(tmp_path)) as client:
        await client.get("/healthz")
        response = await client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert list(openmetrics_families(response.text))


def test_names_follow_the_conventions_and_say_their_unit():
    for family in FAMILIES:
        # `process_` are the names that Prometheus' own client libraries use.
        assert family.name.startswith(("signin_", "process_"))
        assert family.name.endswith("_total") == (family.kind == "counter")
        assert family.name == family.name.lower()
        assert bool(family.bounds) == (family.kind == "histogram")
        assert list(family.bounds) == sorted(set(family.bounds))


def test_every_label_set_has_as_many_values_as_its_metric_has_labels():
    metrics = Metrics()
    metrics.request_answered({"method": "POST", "path": "/events/signin"}, 202, 0.01)
    metrics.problem_answered({"method": "POST", "path": "/events/signin"}, "invalid_json")
    metrics.publish_called(3, 0.1)
    snapshot = metrics.snapshot(time.monotonic())
    for name, cells in [*snapshot.counters.items(), *snapshot.histograms.items()]:
        assert all(len(cell[0]) == len(BY_NAME[name].labels) for cell in cells), name


def test_values_fall_into_the_bucket_whose_bound_they_do_not_exceed():
    metrics = Metrics()
    for seconds in (0.0005, 0.001, 0.0011, 9.9, 10.0, 11.0):
        metrics.publish_called(1, seconds)
    found = exposed(metrics.snapshot(time.monotonic()))
    buckets = {key[1]: value for key, value in found.items() if key[0] == "signin_publish_seconds_bucket"}
    assert (buckets["0.001"], buckets["0.0025"], buckets["5.0"]) == (2, 3, 3)
    assert (buckets["10.0"], buckets["+Inf"]) == (5, 6)
    assert found["signin_publish_seconds_count", "OK"] == 6
    assert found["signin_publish_seconds_sum", "OK"] == pytest.approx(30.9026)


async def test_problems_are_counted_by_route_and_code_however_they_arise(tmp_path):
    async with serving(settings_for(tmp_path)) as client:
        assert (await client.get("/nowhere/at/all")).status_code == 404
        assert (await client.get("/events/signin")).status_code == 405
        assert (await client.get("/jobs?page_size=-1")).status_code == 422
        found = await scraped(client)
    assert found["signin_problems_total", "not_found", ""] == 1
    assert found["signin_problems_total", "method_not_allowed", "/events/signin"] == 1
    assert found["signin_problems_total", "invalid_request", "/jobs"] == 1
    assert ("signin_events_total", "method_not_allowed", "refused") not in found


async def test_the_outbox_is_shown_as_the_database_has_it(tmp_path, database_url):
    settings = settings_for(tmp_path, database_url=database_url)
    async with serving(settings) as client:
        assert (await scraped(client))["signin_outbox_oldest_age_seconds",] == 0
        database = Database(settings)
        await Outbox(database, settings).spool([message(1), message(2)])
        await database.close()
        found = {}
        async with asyncio.timeout(10):
            while found.get(("signin_outbox_events",)) != 2:  # the status is kept for a second
                await asyncio.sleep(0.05)
                found = await scraped(client)
        assert found["signin_outbox_counted",] == 1
        assert found["signin_outbox_parked_events",] == 0
        assert found["signin_outbox_bytes",] > 0
        assert 0 < found["signin_outbox_oldest_age_seconds",] < 60


async def test_without_a_database_the_scrape_is_answered_and_says_so(tmp_path):
    settings = settings_for(tmp_path, database_url="postgresql://nobody@127.0.0.1:1/nothing")
    async with serving(settings) as client:
        started = time.monotonic()
        found = await scraped(client)
        assert time.monotonic() - started < OUTBOX_DEADLINE_SECONDS + 5
    assert found["signin_outbox_counted",] == 0
    assert ("signin_outbox_events",) not in found


async def test_a_database_that_hangs_is_asked_once_however_many_scrapes_come(database, database_url):
    outbox = Outbox(database, Settings(_env_file=None, database_url=database_url))
    asked, answer = 0, asyncio.Event()
    connect = database.session

    def slow():
        nonlocal asked
        asked += 1
        return Held(connect(), answer)

    database.session = slow
    watch = OutboxWatch(outbox)
    started = time.monotonic()
    assert await asyncio.gather(*(watch.look() for _ in range(20))) == [None] * 20
    assert await watch.look() is None
    assert time.monotonic() - started < 2 * OUTBOX_DEADLINE_SECONDS + 5
    answer.set()
    assert (await watch.look()).rows == 0
    assert asked == 1
    await watch.close()


class Held:
    """A session that is not there before `answer` is set, as behind a lock."""

    def __init__(self, session, answer):
        self._session, self._answer = session, answer

    async def __aenter__(self):
        await self._answer.wait()
        return await self._session.__aenter__()

    async def __aexit__(self, *error):
        return await self._session.__aexit__(*error)


async def test_commits_to_the_outbox_and_their_failures_are_counted(database, database_url, tmp_path):
    metrics = Metrics()
    outbox = Outbox(database, Settings(_env_file=None, database_url=database_url), metrics=metrics)
    await outbox.spool([message(1)])
    full = Outbox(
        database, Settings(_env_file=None, database_url=database_url, outbox_max_rows=1), metrics=metrics
    )
    await full.status()
    with pytest.raises(OutboxFullError):
        await full.spool([message(2)])  # turned away before any commit
    found = exposed(metrics.snapshot(time.monotonic()))
    assert found["signin_outbox_commit_seconds_count", "committed"] == 1
    assert found["signin_outbox_commit_seconds_count", "failed"] == 0


async def test_the_breaker_and_the_relay_are_counted_through_an_outage(tmp_path, database_url):
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url, breaker_open_seconds=0.05) as (
            server,
            settings,
            _,
        ),
        serving(settings) as client,
    ):
        assert (await scraped(client))["signin_breaker_processes", "closed"] == 1
        server.faults.set([Fault(method="Publish", code="UNAVAILABLE")])
        for _ in range(settings.breaker_failures + 1):
            answer = await client.post("/events/signin", content=ARTICLE, headers=JSON)
            assert answer.json()["status"] == "spooled"
        found = await scraped(client)
        assert found["signin_breaker_opened_total",] == 1
        assert ("signin_breaker_processes", "closed") not in found
        server.faults.set([])
        async with asyncio.timeout(20):
            while found.get(("signin_relay_events_total", "published")) != settings.breaker_failures + 1:
                await asyncio.sleep(0.02)
                found = await scraped(client)
            # An older probe that fails after the last event is published leaves the breaker open until there
            # is another event to try with.
            while ("signin_breaker_processes", "closed") not in found:
                await client.post("/events/signin", content=ARTICLE, headers=JSON)
                await asyncio.sleep(0.1)
                found = await scraped(client)
        assert found["signin_breaker_processes", "closed"] == 1


async def test_an_event_that_the_relay_parks_is_counted(tmp_path):
    async with pubsub_with_topic(tmp_path) as (server, settings, _), publishing(settings) as world:
        await world.outbox.spool([message(1)])
        server.faults.set([Fault(method="Publish", code="INVALID_ARGUMENT")])
        await world.relay.flush()
        assert (world.relay._parked.value, world.relay._published.value) == (1, 0)


async def test_dataflow_calls_are_counted_by_method_and_status(tmp_path):
    metrics = Metrics()
    async with DataflowServer(tmp_path / "dataflow") as server:
        settings = settings_for(tmp_path, dataflow_emulator_host=server.address)
        clients = Clients(settings)
        dataflow = Dataflow(clients, settings, metrics)
        try:
            await dataflow.list_active("some-project", "us-central1")
            server.faults.set([Fault(method="ListJobs", code="RESOURCE_EXHAUSTED")])
            with pytest.raises(DataflowError):
                await dataflow.list_active("some-project", "us-central1")
        finally:
            await clients.close()
    found = exposed(metrics.snapshot(time.monotonic()))
    assert found["signin_dataflow_call_seconds_count", "OK", "list_jobs"] == 1
    assert found["signin_dataflow_call_seconds_count", "RESOURCE_EXHAUSTED", "list_jobs"] == 1


async def test_ticks_of_the_reconciler_are_counted_by_how_they_ended(tmp_path, database, database_url):
    settings = settings_for(tmp_path, database_url=database_url, reconcile_interval_seconds=0.01)
    clients, metrics = Clients(settings), Metrics()
    reconciler = Reconciler(database, Dataflow(clients, settings), settings, metrics=metrics)
    running = asyncio.create_task(reconciler.run())
    ticks = metrics.tick_seconds.cell("complete")
    await eventually(lambda: sum(ticks.counts) >= 2)
    running.cancel()
    await asyncio.wait([running])
    await clients.close()
    assert ticks.sum > 0


def test_an_http_method_that_nobody_knows_makes_no_label_of_its_own():
    metrics = Metrics()
    for number in range(100):
        metrics.request_answered({"method": f"METHOD{number}", "path": f"/{number}"}, 404, 0.01)
    assert metrics.requests.cells.keys() == {("other", "", "404")}
