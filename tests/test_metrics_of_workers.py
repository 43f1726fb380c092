"""What /metrics tells of several processes: their sums, and those of processes that died."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from urllib.parse import urlsplit

import httpx
import pytest

from service.metrics import Metrics
from service.metrics.shared import HALF_BYTES, Region, make_file
from tests.running import marked, until
from tests.sample_metrics import exposed, read
from tests.test_workers import Served


@pytest.fixture
def shared_file():
    descriptor = make_file()
    yield descriptor
    os.close(descriptor)


def test_what_several_processes_counted_is_added_up(shared_file):
    first, second = (Metrics(Region(shared_file, index, 2)) for index in range(2))
    first.published.value += 3
    second.published.value += 4
    first.publish_called(10, 0.001)
    second.publish_called(20, 0.1)
    first.breaker_is(lambda: "open")
    second.breaker_is(lambda: "closed")
    second.everybody()
    found = exposed(*first.everybody())
    assert found["signin_events_total", "", "published"] == 7
    assert found["signin_publish_batch_messages_sum",] == 30
    assert found["signin_publish_seconds_count", "OK"] == 2
    assert found["signin_processes",] == 2
    assert found["signin_breaker_processes", "open"] == found["signin_breaker_processes", "closed"] == 1


def test_a_process_that_takes_the_place_of_another_goes_on_with_its_sums(shared_file):
    dead = Metrics(Region(shared_file, 0, 2))
    dead.published.value += 5
    dead.publish_called(10, 0.001)
    dead.everybody()
    successor = Metrics(Region(shared_file, 0, 2))
    successor.published.value += 1
    found = exposed(*successor.everybody())
    assert found["signin_events_total", "", "published"] == 6
    assert found["signin_publish_seconds_count", "OK"] == 1
    assert found["signin_processes",] == 1


async def test_the_gauges_of_a_process_end_with_it_and_its_sums_stay(shared_file):
    first, second = (Metrics(Region(shared_file, index, 2)) for index in range(2))
    second.published.value += 4
    running = asyncio.create_task(second.run())
    await asyncio.sleep(0)
    assert exposed(*first.everybody())["signin_processes",] == 2
    running.cancel()
    await asyncio.wait([running])
    found = exposed(*first.everybody())
    assert found["signin_processes",] == 1
    assert found["signin_events_total", "", "published"] == 4


def test_a_snapshot_that_was_cut_off_leaves_the_one_before_it(shared_file):
    metrics = Metrics(Region(shared_file, 0, 2))
    reader = Region(shared_file, 1, 2)
    chance = random.Random(1)
    for number in range(1, 20):
        metrics.published.value = number
        metrics.everybody()
        assert reader.others()[0].counters["signin_events_total"][0] == (("published", ""), number)
        # The next copy goes to the other half: some of its bytes, at random, are not the right ones.
        half = (number + 1) % 2
        os.pwrite(shared_file, chance.randbytes(60), half * HALF_BYTES + chance.randrange(100))
        assert reader.others()[0].counters["signin_events_total"][0] == (("published", ""), number)


def test_a_snapshot_that_is_too_large_for_its_region_spoils_no_other(shared_file, caplog):
    small, large = Metrics(Region(shared_file, 1, 2)), Metrics(Region(shared_file, 0, 2))
    small.published.value += 1
    small.everybody()
    large.events.add("refused", "x" * HALF_BYTES)
    large.everybody()
    assert "more than the workers can share" in caplog.text
    assert Region(shared_file, 0, 2).others()[0].counters["signin_events_total"][0][1] == 1


def test_any_worker_answers_for_all_of_them_and_for_those_that_died(tmp_path):
    with Served(tmp_path) as served:

        def total():
            text = httpx.get(f"{served.url}/metrics", timeout=10).text
            return read(text).get(("signin_problems_total", "not_found", ""), 0)

        def ask_only(pid):
            for other in served.pids() - {pid}:
                os.kill(other, signal.SIGSTOP)
            try:
                for _ in range(5):
                    httpx.get(f"{served.url}/nowhere", timeout=10)
            finally:
                for other in served.pids() - {pid}:
                    os.kill(other, signal.SIGCONT)

        address = urlsplit(served.url)
        open_ones = [socket.create_connection((address.hostname, address.port)) for _ in range(3)]
        until(lambda: read(httpx.get(f"{served.url}/metrics").text)["signin_connections",] >= 3)
        for one in open_ones:
            one.close()
        until(lambda: read(httpx.get(f"{served.url}/metrics").text)["signin_connections",] == 1)
        first, second = sorted(served.pids())
        ask_only(first)
        ask_only(second)
        until(lambda: total() == 10)
        os.kill(first, signal.SIGKILL)
        until(lambda: first not in served.pids() and len(served.pids()) == 2)
        counts = [total() for _ in range(10)]
        assert counts == [10] * 10
    until(lambda: not marked(served.mark))  # a worker that was just being started ends with its parent
