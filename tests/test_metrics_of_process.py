"""What /metrics tells of a process, of its door, and of what waits in it and in the outbox."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from service.db import Database
from service.local.faults import Fault
from service.metrics import Metrics
from service.metrics.process import cpu_seconds
from service.metrics.shared import Region, make_file
from service.models import utc_now
from service.outbox import Outbox
from tests.doors import Issuer, bearer, make_key
from tests.publishing import message
from tests.sample_metrics import exposed, read, scraped
from tests.serving import ARTICLE, JSON, pubsub_with_topic, serving, settings_for
from tests.serving import until as eventually


@pytest.fixture
def shared_file():
    descriptor = make_file()
    yield descriptor
    os.close(descriptor)


async def test_the_process_tells_its_cpu_time_memory_files_and_start(tmp_path):
    async with serving(settings_for(tmp_path)) as client:
        before, found = await scraped(client), await scraped(client)
    assert found["process_cpu_seconds_total",] >= before["process_cpu_seconds_total",] > 0
    assert found["process_resident_memory_bytes",] > 20_000_000
    assert 3 < found["process_open_fds",] < found["process_max_fds",]
    assert 0 < time.time() - found["process_start_time_seconds",] < 86_400


def test_cpu_time_is_a_sum_over_processes_that_are_gone_too_and_files_are_those_of_the_fullest(shared_file):
    first, second = (Metrics(Region(shared_file, index, 2)) for index in range(2))
    second.cpu.cell().value = second._cpu_before = 100.0
    before = cpu_seconds()
    second.everybody()
    found = exposed(*first.everybody())
    # Both are of this process, and the second one's place has the time of another before it.
    assert 100 + 2 * before <= found["process_cpu_seconds_total",] <= 100 + 2 * cpu_seconds()
    files = found["process_open_fds",]
    assert 3 < files < 2 * len(list(Path("/proc/self/fd").iterdir()))
    successor = Metrics(Region(shared_file, 1, 2))
    assert exposed(successor.snapshot(time.monotonic()))["process_cpu_seconds_total",] > 100


async def test_an_event_loop_that_stood_still_is_seen_in_its_lag():
    metrics = Metrics()
    running = asyncio.create_task(metrics.run())
    await asyncio.sleep(0)
    time.sleep(0.6)  # the loop waits for 0.25 s meanwhile  # noqa: ASYNC251
    lag = metrics.loop_lag_seconds.cell()
    await eventually(lambda: sum(lag.counts))
    running.cancel()
    await asyncio.wait([running])
    assert lag.sum > 0.3


async def test_how_full_the_outbox_is_counts_bytes_and_events(tmp_path, database_url):
    settings = settings_for(tmp_path, database_url=database_url, outbox_max_rows=4, outbox_max_bytes=10**6)
    database = Database(settings)
    await Outbox(database, settings).spool([message(1)])
    await database.close()
    async with serving(settings) as client:
        assert (await scraped(client))["signin_outbox_fill_ratio",] == 0.25


async def test_how_long_events_waited_in_the_outbox_is_seen_when_they_leave(tmp_path, database_url):
    async with pubsub_with_topic(tmp_path, database_url=database_url) as (_, settings, _reader):
        database = Database(settings)
        earlier = Outbox(database, settings, clock=lambda: utc_now() - timedelta(minutes=10))
        await earlier.spool([message(1), message(2)])
        await database.close()
        found = {}
        async with serving(settings) as client, asyncio.timeout(20):
            while found.get(("signin_outbox_wait_seconds_count",)) != 2:
                await asyncio.sleep(0.02)
                found = await scraped(client)
    assert found["signin_outbox_wait_seconds_bucket", "300.0"] == 0
    assert found["signin_outbox_wait_seconds_bucket", "900.0"] == 2


async def test_what_is_in_flight_and_how_full_the_process_is_can_be_seen(tmp_path):
    async with pubsub_with_topic(tmp_path, publish_inflight_messages=4) as (
        server,
        settings,
        _,
    ):
        server.faults.set([Fault(method="Publish", hold=True)])
        async with serving(settings) as client:
            sending = asyncio.create_task(client.post("/events/signin", content=ARTICLE, headers=JSON))
            found = {}
            async with asyncio.timeout(10):
                while found.get(("signin_publish_waiting_events",)) != 1:
                    await asyncio.sleep(0.01)
                    found = await scraped(client)
            assert found["signin_publish_fill_ratio",] == 0.25
            server.faults.set([])
            sending.cancel()
            await asyncio.wait([sending])


async def test_keys_that_cannot_be_looked_at_grow_old_and_an_issuer_that_is_away_shows(tmp_path):
    with Issuer().serving() as issuer:
        settings = settings_for(tmp_path, key_refresh_seconds=0.02, **issuer.settings())
        async with serving(settings) as client:
            app = client._transport.app
            found = await scraped_as(client, issuer)
            assert found["signin_issuer_keys_failed",] == 0
            assert found["signin_keys_age_seconds",] < 5
            issuer.answer = 503
            app.state.guard._tokens._keys._fetched_at = app.state.guard._tokens._keys._tried_at = -1e9
            await app.state.guard._tokens._keys._fetch()
            assert exposed(app.state.metrics.snapshot(time.monotonic()))["signin_issuer_keys_failed",] == 1


async def scraped_as(client, issuer):
    answer = await client.get("/metrics", headers=bearer(issuer.token()))
    assert answer.status_code == 200, answer.text
    return read(answer.text)


async def test_who_is_turned_away_at_the_door_is_counted_by_the_code_of_the_reason(tmp_path, database_url):
    settings = settings_for(
        tmp_path,
        database_url=database_url,
        require_authentication=True,
        control_requests_per_second=0.1,
    )
    database = Database(settings)
    key = await make_key(database, "jobs:read")
    await database.close()
    async with serving(settings) as client:
        statuses = [
            (await client.get("/jobs", headers=headers)).status_code
            for headers in ({}, bearer("signin_nobody"), bearer(key.text), bearer(key.text))
        ]
        found = exposed(client._transport.app.state.metrics.snapshot(time.monotonic()))
    assert statuses == [401, 401, 200, 429]
    assert labelled_first(found, "signin_problems_total") == {
        "authentication_required": 1,
        "invalid_credentials": 1,
        "rate_limited": 1,
    }


def labelled_first(samples, name):
    return {key[1]: value for key, value in samples.items() if key[0] == name}
