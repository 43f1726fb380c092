"""The publisher while Pub/Sub refuses, hangs or is away: events go to the outbox, and callers wait little."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.errors import OutboxFullError, PublishUnavailableError
from service.local.faults import Fault
from service.local.pubsub import PubsubServer
from service.publisher import MAX_CALLS, Receipt
from tests.publishing import SPOOLED, message, outbox_events, outcomes, publishing, without_database
from tests.serving import HANGING, NOBODY, pubsub_with_topic, settings_for


async def test_events_for_a_topic_that_is_not_there_are_kept_and_the_breaker_opens(tmp_path):
    async with PubsubServer() as server, publishing(settings_for(tmp_path, server.address)) as world:
        for i in range(5):
            assert await world.publisher.publish(*message(i)) == SPOOLED
        assert (world.breaker.is_closed, world.breaker.cause) == (False, "NOT_FOUND")
        assert len(await outbox_events(world.outbox)) == 5


@pytest.mark.parametrize(
    "code",
    [
        *("UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL", "UNKNOWN", "ABORTED"),
        *("PERMISSION_DENIED", "NOT_FOUND", "UNAUTHENTICATED", "FAILED_PRECONDITION", "UNIMPLEMENTED"),
    ],
)
async def test_a_status_that_is_not_of_the_message_puts_the_event_into_the_outbox(
    tmp_path, database_url, code
):
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url) as (server, settings, _),
        publishing(settings) as world,
    ):
        server.faults.set([Fault(method="Publish", code=code)])
        assert await world.publisher.publish(*message(7)) == SPOOLED
        [row] = await outbox_events(world.outbox)
        assert (row["event_id"], row["data"], row["attributes"]) == (
            "event-7",
            b'{"n":7}',
            '{"event_id":"event-7"}',
        )
        server.faults.set([])
        assert (await world.publisher.publish(b"x", {})).status == "published"


async def test_a_pubsub_that_is_not_there_costs_no_event_and_no_time(tmp_path, database_url):
    async with publishing(settings_for(tmp_path, NOBODY, database_url=database_url)) as world:
        await outcomes(world, 1)  # the first one also imports gRPC
        started = time.monotonic()
        receipts = await asyncio.gather(*(world.publisher.publish(*message(i)) for i in range(500)))
        assert time.monotonic() - started < 10
        assert set(receipts) == {SPOOLED}
        kept = {row["event_id"] for row in await outbox_events(world.outbox)}
        assert kept >= {f"event-{i}" for i in range(500)}


async def test_while_the_breaker_is_open_no_caller_asks_pubsub(tmp_path, database_url):
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url, breaker_open_seconds=0.01) as (
            server,
            settings,
            _,
        ),
        publishing(settings) as world,
    ):
        server.faults.set([Fault(method="Publish", code="UNAVAILABLE")])
        while world.breaker.is_closed:
            assert await world.publisher.publish(b"x", {}) == SPOOLED
        calls = server.faults.calls["Publish"]
        assert set(await outcomes(world, 500)) == {SPOOLED}
        assert server.faults.calls["Publish"] == calls


async def test_a_pubsub_that_hangs_costs_a_caller_the_patience_and_the_next_ones_nothing(tmp_path):
    patience = {"publish_patience_seconds": 0.3}
    async with (
        pubsub_with_topic(tmp_path, **patience) as (server, settings, _),
        publishing(settings) as world,
    ):
        await world.publisher.publish(b"x", {})
        server.faults.set([HANGING])
        for least in (0.25, 0.0, 0.0):
            started = time.monotonic()
            assert await world.publisher.publish(b"x", {}) == SPOOLED
            assert least < time.monotonic() - started < 5.0
        assert world.breaker.state == "open"
        assert server.faults.calls["Publish"] == 2


async def test_events_behind_hanging_calls_do_not_wait_for_a_call_of_their_own(tmp_path):
    limits = {"publish_patience_seconds": 0.3, "publish_batch_messages": 1}
    async with (
        pubsub_with_topic(tmp_path, **limits) as (server, settings, _),
        publishing(settings) as world,
    ):
        server.faults.set([HANGING])
        started = time.monotonic()
        assert set(await outcomes(world, MAX_CALLS * 4)) == {SPOOLED}
        assert time.monotonic() - started < 10
        assert server.faults.calls["Publish"] <= MAX_CALLS


async def test_with_neither_pubsub_nor_database_nothing_is_promised(tmp_path):
    async with publishing(without_database(settings_for(tmp_path, NOBODY))) as world:
        await outcomes(world, 1)
        started = time.monotonic()
        answers = await outcomes(world, 500)
        assert time.monotonic() - started < 10
        assert {type(answer) for answer in answers} == {PublishUnavailableError}
        assert all(answer.retryable and answer.retry_after_seconds for answer in answers)


async def test_with_the_database_away_publishing_goes_on_when_pubsub_is_back(tmp_path):
    async with (
        pubsub_with_topic(tmp_path, breaker_open_seconds=0.05) as (server, settings, _),
        publishing(without_database(settings)) as world,
    ):
        server.faults.set([Fault(method="Publish", code="UNAVAILABLE")])
        while world.breaker.is_closed:
            await outcomes(world, 1)
        server.faults.set([])
        deadline = time.monotonic() + 5
        while not isinstance((await outcomes(world, 1))[0], Receipt):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        assert world.breaker.is_closed


async def test_a_full_outbox_turns_events_away_and_says_when_to_come_again(tmp_path, database_url):
    limits = {"outbox_max_rows": 10, "database_url": database_url}
    async with publishing(settings_for(tmp_path, NOBODY, **limits)) as world:
        receipts = await world.publisher.publish_all([message(i) for i in range(10)])
        assert set(receipts) == {SPOOLED}
        with pytest.raises(OutboxFullError) as caught:
            await world.publisher.publish(b"x", {})
        assert 1 <= caught.value.retry_after_seconds <= 2  # more, the longer nothing leaves
        assert len(await outbox_events(world.outbox)) == 10
