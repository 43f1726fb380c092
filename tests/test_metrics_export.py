"""The metrics by OTLP: what `/metrics` says, with a process for each worker too, and only where asked for."""

from __future__ import annotations

import asyncio
import os
import shutil
import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.metrics import Metrics
from service.metrics.shared import Region, make_file
from service.metrics_export import MetricsExport
from tests.otlp_receiver import Receiver
from tests.server_process import service
from tests.serving import ARTICLE, JSON, NOBODY, pubsub_with_topic, running

POSTS = (
    "signin_requests",
    frozenset({"method": "POST", "route": "/events/signin", "status": "202"}.items()),
)
# What no longer changes when the last sign-in is answered.
STEADY = {"signin_events", "signin_publish_seconds", "signin_publish_batch_messages", "signin_info"}


def values(text):
    """What `/metrics` says: by name without its ending, then by labels; histograms as bucket counts."""
    found = {}
    for family in text_string_to_metric_families(text):
        for name, labels, value, *_ in family.samples:
            key = frozenset((k, v) for k, v in labels.items() if k != "le")
            if family.type != "histogram":
                found[family.name, key] = value
            elif name.endswith("_bucket"):
                found.setdefault((family.name, key), []).append(value)
    return found


def pushed(metrics):
    found = {}
    for name, points in metrics.items():
        for point in points:
            key = name, frozenset(point.attributes.items())
            below = [sum(point.buckets[: index + 1]) for index in range(len(point.buckets))]
            found[key] = below or point.value
    return found


@pytest.fixture
def two_regions():
    descriptor = make_file()
    yield Region(descriptor, 0, 2), Region(descriptor, 1, 2)
    os.close(descriptor)


async def test_otlp_says_what_the_metrics_page_says_of_all_processes(
    tmp_path, monkeypatch, two_regions, migrated_sqlite
):
    first, second = two_regions
    neighbour = Metrics(second)
    neighbour.events.add("refused", "date_missing", count=3)
    neighbour.publish_called(7, 0.02)
    neighbour.everybody()
    url = f"sqlite:///{shutil.copyfile(migrated_sqlite, tmp_path / 'test.db')}"
    with Receiver() as receiver:
        for name, value in (receiver.environment | {"OTEL_TRACES_EXPORTER": "none"}).items():
            monkeypatch.setenv(name, value)
        async with (
            pubsub_with_topic(tmp_path, database_url=url) as (_, settings, _reader),
            running(create_app(settings, Metrics(first))) as client,
        ):
            for _ in range(5):
                await client.post("/events/signin", content=ARTICLE, headers=JSON)
            await asyncio.to_thread(receiver.until, lambda seen: pushed(seen.metrics).get(POSTS) == 5)
            told = values((await client.get("/metrics")).text)
        counted = pushed(receiver.metrics)
    assert counted["signin_events", frozenset({"outcome": "refused", "code": "date_missing"}.items())] == 3
    steady = {key: told[key] for key in told if key[0] in STEADY}
    assert steady == {key: counted[key] for key in steady}
    assert {key[0] for key in steady} == STEADY
    assert {key[0] for key in told} == set(receiver.metrics)
    assert (receiver.units["signin_publish_seconds"], receiver.units["signin_outbox_bytes"]) == ("s", "By")
    assert len({each["service.instance.id"] for each in receiver.resources}) == 1


async def test_only_one_of_the_processes_sends(two_regions, monkeypatch):
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    first, second = two_regions
    assert [Metrics(first).speaks_for_all, Metrics(second).speaks_for_all] == [True, False]
    assert Metrics().speaks_for_all
    await asyncio.wait_for(MetricsExport(Metrics(second), _never, "1").run(), 1)


async def _never():
    raise AssertionError


def test_what_a_replaced_worker_counted_began_when_it_did(two_regions):
    first, _ = two_regions
    before = Metrics(first)
    before.everybody()
    assert Metrics(first).began_at == before.began_at


@pytest.mark.soak
def test_workers_send_their_sums_and_end_in_time_with_a_receiver_that_is_away(tmp_path):
    with Receiver() as receiver, service(tmp_path, NOBODY, workers=2, **receiver.environment) as server:
        for _ in range(5):
            httpx.post(f"{server.address}/events/signin", content=ARTICLE, headers=JSON, timeout=10)
        receiver.until(lambda seen: pushed(seen.metrics).get(POSTS) == 5)
        receiver.until(lambda seen: len([span for span in seen.spans if span.kind == "SERVER"]) >= 5)
        assert server.stop() == 0
    with service(tmp_path, NOBODY, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{NOBODY}") as server:
        answer = httpx.post(f"{server.address}/events/signin", content=ARTICLE, headers=JSON, timeout=10)
        assert answer.status_code == 202
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 15
