"""The alerts over real scrapes: an outage, a closed topic and a database that is away are seen in them."""

from __future__ import annotations

import asyncio

import httpx
from prometheus_client.parser import text_string_to_metric_families

from service.local.faults import Fault
from tests.alert_rules import firing
from tests.promql import Series
from tests.sample_metrics import scraped
from tests.serving import ARTICLE, JSON, pubsub_with_topic, serving, settings_for
from tests.serving import until as eventually

# Over real scrapes; each stands for the next minute


class Prometheus:
    """Scrapes an instance of the service whenever it is told that a minute has passed."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._series = Series()
        self._minutes = 0

    async def minute(self, count: int = 1) -> None:
        for _ in range(count):
            text = (await self._client.get("/metrics")).text
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    labels = {**sample.labels, "instance": "a", "job": "signin"}
                    self._series.add(sample.name, labels, 60.0 * self._minutes, sample.value)
            self._minutes += 1

    def firing(self) -> set[str]:
        return firing(self._series, [60.0 * minute for minute in range(self._minutes)])[-1]


async def test_an_outage_that_fills_the_outbox_is_seen_in_what_the_service_tells(tmp_path, database_url):
    async with (
        pubsub_with_topic(
            tmp_path, database_url=database_url, outbox_max_rows=20, breaker_open_seconds=60
        ) as (server, settings, _),
        serving(settings) as client,
    ):
        prometheus = Prometheus(client)

        async def minutes(count):
            for _ in range(count):
                for _ in range(3):
                    await client.post("/events/signin", content=ARTICLE, headers=JSON)
                await prometheus.minute()

        await eventually(lambda: client._transport.app.state.reconciler.lease.token is not None)
        await minutes(12)
        assert prometheus.firing() == {"SigninJobNotRunning"}
        server.faults.set([Fault(method="Publish", code="UNAVAILABLE")])
        await minutes(8)
        async with asyncio.timeout(10):  # it is counted once a second
            fill = 0.0
            while fill < 1:
                await asyncio.sleep(0.05)
                fill = (await scraped(client))["signin_outbox_fill_ratio",]
        await minutes(12)
        outbox = {"SigninBreakerOpen", "SigninOutboxFilling", "SigninOutboxNearlyFull"}
        assert outbox | {"SigninErrorsBurnRate"} <= prometheus.firing()


async def test_a_closed_topic_is_seen_in_what_the_service_tells(tmp_path, database_url):
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url, breaker_open_seconds=0.02) as (
            server,
            settings,
            _,
        ),
        serving(settings) as client,
    ):
        prometheus = Prometheus(client)
        server.faults.set([Fault(method="Publish", code="NOT_FOUND")])
        for _ in range(5):
            calls = server.faults.calls["Publish"]
            await client.post("/events/signin", content=ARTICLE, headers=JSON)
            await eventually(lambda calls=calls: server.faults.calls["Publish"] > calls)
            await prometheus.minute()
        assert "SigninTopicClosed" in prometheus.firing()


async def test_a_single_burst_of_refusals_is_seen_in_what_the_service_tells(tmp_path, database_url):
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url) as (server, settings, _),
        serving(settings) as client,
    ):
        prometheus = Prometheus(client)
        await prometheus.minute(2)
        server.faults.set([Fault(method="Publish", code="INVALID_ARGUMENT", times=1)])
        assert (await client.post("/events/signin", content=ARTICLE, headers=JSON)).status_code == 502
        await prometheus.minute(4)
        assert "SigninPublishRefused" in prometheus.firing()


async def test_a_database_that_is_away_is_seen_in_what_the_service_tells(tmp_path):
    settings = settings_for(tmp_path, database_url="postgresql://nobody@127.0.0.1:1/nothing")
    async with serving(settings) as client:
        prometheus = Prometheus(client)
        await prometheus.minute(6)
    assert {"SigninDatabaseAway", "SigninNoReconciler"} <= prometheus.firing()
