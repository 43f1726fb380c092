"""The relay against a real Pub/Sub server: what was spooled arrives, in order, under its own ids."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import pytest

from service.db import Database
from service.local.faults import Fault
from service.outbox import Outbox
from service.relay import Relay
from service.topic import TopicError
from tests.publishing import breaker_for, message, outbox_events, publishing, stopped_while_woken
from tests.serving import HANGING, pubsub_with_topic, settings_for, until


def ids(messages):
    return [each.attributes["event_id"] for each in messages]


async def spooled(world, count, size=1000):
    for first in range(0, count, size):
        await world.outbox.spool([message(i) for i in range(first, min(first + size, count))])


async def until_empty(world, seconds=10.0):
    async with asyncio.timeout(seconds):
        while (await world.outbox.status()).waiting:  # noqa: ASYNC110 -- another task empties it
            await asyncio.sleep(0.02)


async def test_what_waits_is_published_oldest_first_and_leaves_the_outbox(tmp_path, database_url):
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url) as (_, settings, reader),
        publishing(settings) as world,
    ):
        await spooled(world, 500)
        assert await world.relay.flush() == 500
        found = await reader.pull(500)
        assert ids(found) == [f"event-{i}" for i in range(500)]
        assert found[3].data == b'{"n":3}'
        assert await outbox_events(world.outbox) == []


async def test_many_batches_all_arrive_once(tmp_path, database_url):
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url) as (_, settings, reader),
        publishing(settings) as world,
    ):
        await spooled(world, 10_000)
        running = asyncio.create_task(world.relay.run())
        await until_empty(world)
        running.cancel()
        await asyncio.wait([running])
        assert sorted(ids(await reader.pull(10_000))) == sorted(f"event-{i}" for i in range(10_000))
        assert world.outbox.rows == 0


async def test_after_an_outage_everything_arrives_and_the_breaker_closes(tmp_path, database_url):
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url, breaker_open_seconds=0.05) as (
            server,
            settings,
            reader,
        ),
        publishing(settings, relay=True) as world,
    ):
        server.faults.set([Fault(method="Publish", code="UNAVAILABLE")])
        receipts = [await world.publisher.publish(*message(i)) for i in range(20)]
        assert {receipt.status for receipt in receipts} == {"spooled"}
        server.faults.set([])
        await until(lambda: world.breaker.is_closed)
        await until_empty(world)
        assert (await world.publisher.publish(*message(20))).status == "published"
        assert set(ids(await reader.pull(21))) == {f"event-{i}" for i in range(21)}


async def test_a_lone_event_after_the_outage_is_what_closes_the_breaker(tmp_path):
    async with (
        pubsub_with_topic(tmp_path, breaker_open_seconds=0.05) as (_server, settings, reader),
        publishing(settings, relay=True) as world,
    ):
        while world.breaker.is_closed:
            world.breaker.failed("UNAVAILABLE", world.breaker.now())
        assert (await world.publisher.publish(*message(1))).status == "spooled"
        await until(lambda: world.breaker.is_closed)
        assert ids(await reader.pull(1)) == ["event-1"]


async def test_the_end_of_a_hang_is_found_while_older_probes_still_hang(tmp_path):
    async with (
        pubsub_with_topic(tmp_path, breaker_open_seconds=0.1, publish_patience_seconds=0.3) as (
            server,
            settings,
            _,
        ),
        publishing(settings, relay=True) as world,
    ):
        server.faults.set([HANGING])
        while world.breaker.is_closed:
            await world.publisher.publish(*message(1))
        await spooled(world, 500)
        await until(lambda: server.faults.calls["Publish"] > 4)
        server.faults.set([])
        started = time.monotonic()
        await until(lambda: world.breaker.is_closed)
        assert time.monotonic() - started < 5


async def test_a_pubsub_that_is_late_gets_events_but_does_not_get_callers_back(tmp_path):
    async with (
        pubsub_with_topic(tmp_path, breaker_open_seconds=0.1, publish_patience_seconds=0.2) as (
            server,
            settings,
            reader,
        ),
        publishing(settings, relay=True) as world,
    ):
        server.faults.set([Fault(method="Publish", delay_seconds=0.5)])
        while world.breaker.is_closed:
            await world.publisher.publish(*message(0))
        await spooled(world, 50)
        await until_empty(world)
        assert not world.breaker.is_closed
        assert set(ids(await reader.pull(50))) >= {f"event-{i}" for i in range(50)}


async def test_one_bad_message_is_parked_and_the_others_of_its_batch_arrive(tmp_path, database_url):
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url) as (server, settings, reader),
        publishing(settings) as world,
    ):
        events = [message(i) for i in range(100)]
        events[3] = events[77] = (b"", {})  # an empty message is refused
        await world.outbox.spool(events)
        assert await world.relay.flush() == 98
        assert len(await reader.pull(98)) == 98
        [(reason, count, _)] = await world.outbox.parked_reasons()
        assert (count, "INVALID_ARGUMENT" in reason) == (2, True)
        status = await world.outbox.status()
        assert (status.rows, status.parked, status.waiting) == (2, 2, 0)
        assert server.faults.calls["Publish"] < 40


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "NOT_FOUND", "UNAUTHENTICATED"])
async def test_while_the_topic_is_closed_nothing_is_parked_and_it_is_tried_until_it_takes_events(
    tmp_path, database_url, code
):
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url, breaker_open_seconds=0.05) as (
            server,
            settings,
            reader,
        ),
        publishing(settings) as world,
    ):
        await spooled(world, 10)
        server.faults.set([Fault(method="Publish", code=code)])
        with pytest.raises(TopicError, match=code):
            await world.relay.flush()
        running = asyncio.create_task(world.relay.run())
        await until(lambda: server.faults.calls["Publish"] > 5)
        assert (world.breaker.is_closed, world.breaker.cause) == (False, code)
        status = await world.outbox.status()
        assert (status.waiting, status.parked) == (10, 0)
        server.faults.set([])
        await until_empty(world)
        await until(lambda: world.breaker.is_closed)
        running.cancel()
        await asyncio.wait([running])
        assert set(ids(await reader.pull(10))) == {f"event-{i}" for i in range(10)}


async def test_what_is_refused_for_good_is_parked_with_the_reason_and_can_be_released(tmp_path, database_url):
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url) as (server, settings, reader),
        publishing(settings) as world,
    ):
        await spooled(world, 10)
        server.faults.set([Fault(method="Publish", code="INVALID_ARGUMENT")])
        assert await world.relay.flush() == 0
        [(reason, count, _)] = await world.outbox.parked_reasons()
        assert (count, "does not fit the topic" in reason) == (10, True)
        server.faults.set([])
        assert await world.relay.flush() == 0
        assert await world.outbox.release("event-4") == 1
        assert await world.relay.flush() == 1
        assert await world.outbox.release() == 9
        assert await world.relay.flush() == 9
        assert set(ids(await reader.pull(10))) == {f"event-{i}" for i in range(10)}


async def test_two_relays_share_the_work_and_publish_nothing_twice(tmp_path, database_url):
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url) as (_, settings, reader),
        publishing(settings) as world,
    ):
        await spooled(world, 5000)
        database = Database(settings)
        other = Relay(world.topic, Outbox(database, settings), breaker_for(settings), settings)
        mine, theirs = await asyncio.gather(world.relay.flush(), other.flush())
        await database.close()
        assert mine + theirs == 5000
        assert len(ids(await reader.pull(5001))) == 5000


async def test_claims_of_a_relay_that_died_are_taken_over_when_they_expire(tmp_path, database_url):
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url) as (_, settings, reader),
        publishing(settings) as world,
    ):
        await spooled(world, 3)
        dead = Outbox(world.database, settings, lambda: world.outbox._clock() - timedelta(seconds=11))
        await dead.claim(2, 1_000_000)
        assert await world.relay.flush() == 3
        assert len(await reader.pull(3)) == 3


async def test_a_relay_that_is_stopped_gives_back_what_it_holds(tmp_path, database_url):
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url) as (server, settings, _),
        publishing(settings, relay=True) as world,
    ):
        server.faults.set([HANGING])
        await spooled(world, 100)
        await until(lambda: server.faults.calls["Publish"])
    async with publishing(settings) as world:
        assert len((await world.outbox.claim(1000, 1_000_000)).rows) == 100


@pytest.mark.parametrize("steps", range(4))
async def test_a_relay_that_is_stopped_at_the_moment_in_which_events_come_ends_all_the_same(tmp_path, steps):
    async with publishing(settings_for(tmp_path)) as world:
        await stopped_while_woken(world.relay, world.outbox.arrived, steps)


async def test_a_database_that_breaks_after_the_call_does_not_make_the_relay_publish_again(tmp_path):
    async with (
        pubsub_with_topic(tmp_path) as (server, settings, reader),
        publishing(settings, relay=True) as world,
    ):
        server.faults.set([Fault(method="Publish", delay_seconds=0.2)])
        await spooled(world, 100)
        await until(lambda: server.faults.calls["Publish"])
        async with world.database.writing():  # the relay's own write has to wait
            await asyncio.sleep(0.5)  # longer than the call takes, and the relay does not publish again
        await until_empty(world)
        assert len(await reader.pull(101)) == 100


async def test_draining_is_fast_enough_for_an_outage_under_full_load(tmp_path, database_url):
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url) as (_, settings, _reader),
        publishing(settings) as world,
    ):
        started = time.monotonic()
        await spooled(world, 20_000)
        spooling = time.monotonic() - started
        running = asyncio.create_task(world.relay.run())
        started = time.monotonic()
        await until_empty(world, 30)
        draining = time.monotonic() - started
        running.cancel()
        await asyncio.wait([running])
        assert draining < 10 * max(spooling, 0.5)


async def test_what_hung_probes_hold_is_published_soon_after_pubsub_is_back(tmp_path, database_url):
    values = {"breaker_open_seconds": 0.1, "publish_patience_seconds": 0.3, "publish_deadline_seconds": 60.0}
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url, **values) as (server, settings, reader),
        publishing(settings, relay=True) as world,
    ):
        server.faults.set([HANGING])
        await spooled(world, 250)
        await until(lambda: len(world.relay._probes) >= 2, 20)
        server.faults.set([])
        await until_empty(world, 10)  # the calls that hang have a deadline of 60 s
        assert set(ids(await reader.pull(250))) == {f"event-{i}" for i in range(250)}
