"""The batching publisher against a real Pub/Sub server: answers, batches, bounds."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.errors import PublishOverloadedError, PublishRefusedError
from service.local.faults import Fault
from service.publisher import Receipt
from tests.publishing import message, outbox_events, outcomes, publishing, without_database
from tests.serving import pubsub_with_topic, until


async def test_a_message_is_in_the_topic_when_its_id_is_returned(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, reader), publishing(settings) as world:
        receipt = await world.publisher.publish(b"hello", {"event_id": "1"})
        [found] = await reader.pull(1)
        assert receipt == Receipt("published", found.message_id)
        assert (found.data, dict(found.attributes)) == (b"hello", {"event_id": "1"})


async def test_two_thousand_concurrent_publishes_get_distinct_ids_in_few_calls(tmp_path):
    async with pubsub_with_topic(tmp_path) as (server, settings, reader), publishing(settings) as world:
        receipts = await asyncio.gather(*(world.publisher.publish(*message(i)) for i in range(2000)))
        ids = [receipt.message_id for receipt in receipts]
        assert len(set(ids)) == 2000
        assert server.faults.calls["Publish"] <= 10
        found = {each.message_id: each.attributes["event_id"] for each in await reader.pull(2000)}
        assert found == {message_id: f"event-{i}" for i, message_id in enumerate(ids)}


async def test_a_lone_caller_does_not_wait_for_a_batch_to_fill(tmp_path):
    async with (
        pubsub_with_topic(tmp_path, publish_linger_seconds=1.0) as (_, settings, _reader),
        publishing(settings) as world,
    ):
        await world.publisher.publish(b"x", {})
        started = time.monotonic()
        for _ in range(10):
            await world.publisher.publish(b"x", {})
        assert time.monotonic() - started < 5  # ten lingers would take ten seconds


async def test_a_batch_keeps_to_the_limit_of_bytes(tmp_path):
    async with (
        pubsub_with_topic(tmp_path, publish_batch_bytes=10_000) as (server, settings, _),
        publishing(settings) as world,
    ):
        await asyncio.gather(*(world.publisher.publish(b"x" * 3000, {}) for _ in range(30)))
        assert 10 <= server.faults.calls["Publish"] <= 20


async def test_publishing_does_not_touch_the_database_while_pubsub_is_there(tmp_path):
    async with (
        pubsub_with_topic(tmp_path) as (_, settings, _reader),
        publishing(without_database(settings)) as world,
    ):
        assert (await world.publisher.publish(b"x", {})).status == "published"
        receipts = await world.publisher.publish_all([message(i) for i in range(1000)])
        assert {receipt.status for receipt in receipts} == {"published"}


async def test_a_message_that_the_topic_does_not_take_is_refused_and_not_kept(tmp_path):
    async with pubsub_with_topic(tmp_path) as (server, settings, _), publishing(settings) as world:
        server.faults.set([Fault(method="Publish", code="INVALID_ARGUMENT")])
        for _ in range(5):
            with pytest.raises(PublishRefusedError, match="INVALID_ARGUMENT"):
                await world.publisher.publish(b"x", {})
        assert world.breaker.is_closed
        assert await outbox_events(world.outbox) == []


async def test_one_bad_message_does_not_sink_its_batch(tmp_path):
    async with pubsub_with_topic(tmp_path) as (server, settings, reader), publishing(settings) as world:
        bodies = [b"" if i in (3, 77) else b"x" for i in range(100)]  # an empty message is refused
        answers = await world.publisher.publish_all([(body, {}) for body in bodies])
        refused = [i for i, answer in enumerate(answers) if isinstance(answer, PublishRefusedError)]
        assert refused == [3, 77]
        assert len({answer.message_id for answer in answers if isinstance(answer, Receipt)}) == 98
        assert len(await reader.pull(98)) == 98
        assert server.faults.calls["Publish"] < 40


async def test_many_messages_have_their_outcomes_in_their_own_order(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, reader), publishing(settings) as world:
        receipts = await world.publisher.publish_all([message(i) for i in range(2500)])
        found = {each.message_id: each.attributes["event_id"] for each in await reader.pull(2500)}
        assert [found[receipt.message_id] for receipt in receipts] == [f"event-{i}" for i in range(2500)]
        assert await world.publisher.publish_all([]) == []


async def test_a_small_caller_does_not_wait_behind_a_large_batch(tmp_path):
    limits = {"publish_batch_messages": 20, "publish_inflight_messages": 4000}
    async with (
        pubsub_with_topic(tmp_path, **limits) as (server, settings, _),
        publishing(settings) as world,
    ):
        await world.publisher.publish(b"x", {})
        server.faults.set([Fault(method="Publish", delay_seconds=0.05)])
        large = asyncio.create_task(world.publisher.publish_all([message(i) for i in range(4000)]))
        await until(lambda: server.faults.calls["Publish"] > 5)
        assert (await world.publisher.publish(b"x", {})).status == "published"
        assert not large.done()
        answers = await large
        assert {type(answer) for answer in answers[:3000]} == {Receipt}
        assert {type(answer) for answer in answers[3000:]} == {PublishOverloadedError}


async def test_a_large_batch_after_a_rest_leaves_calls_to_single_events(tmp_path, monkeypatch):
    limits = {
        "publish_batch_messages": 20,
        "publish_patience_seconds": 30.0,
        "publish_deadline_seconds": 30.0,
    }
    async with (
        pubsub_with_topic(tmp_path, **limits) as (server, settings, _),
        publishing(settings) as world,
    ):
        sizes, publish = [], world.topic.publish

        async def counted(messages, seconds):
            sizes.append(len(messages))
            return await publish(messages, seconds)

        monkeypatch.setattr(world.topic, "publish", counted)
        server.faults.set([Fault(method="Publish", hold=True)])
        large = asyncio.create_task(world.publisher.publish_all([message(i) for i in range(1000)]))
        await server.faults.until_held("Publish", 12)
        small = asyncio.create_task(world.publisher.publish(b"x", {}))
        await until(lambda: 1 in sizes)
        assert sizes == [20] * 12 + [1]
        server.faults.set([])
        assert (await small).status == "published"
        assert {receipt.status for receipt in await large} == {"published"}


async def test_a_caller_that_goes_away_does_not_take_its_batch_along(tmp_path):
    async with pubsub_with_topic(tmp_path) as (server, settings, reader), publishing(settings) as world:
        server.faults.set([Fault(method="Publish", delay_seconds=0.2)])
        tasks = [asyncio.create_task(world.publisher.publish(*message(i))) for i in range(10)]
        await until(lambda: server.faults.calls["Publish"])
        for task in tasks[::2]:
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(answer, Receipt) for answer in answers] == [False, True] * 5
        assert len(await reader.pull(10)) == 10


async def test_too_many_events_are_refused_at_once(tmp_path):
    async with (
        pubsub_with_topic(tmp_path, publish_inflight_messages=5) as (server, settings, _),
        publishing(settings) as world,
    ):
        server.faults.set([Fault(method="Publish", delay_seconds=0.2)])
        answers = await outcomes(world, 8)
        assert [type(answer) for answer in answers] == [Receipt] * 5 + [PublishOverloadedError] * 3
        assert 1 <= answers[-1].retry_after_seconds <= 2  # a burst that just began is no standstill
        server.faults.set([])
        assert await world.publisher.publish(b"x", {})


async def test_too_many_bytes_are_refused_at_once(tmp_path):
    async with (
        pubsub_with_topic(tmp_path, publish_inflight_bytes=10_000) as (server, settings, _),
        publishing(settings) as world,
    ):
        server.faults.set([Fault(method="Publish", delay_seconds=0.2)])
        first = asyncio.create_task(world.publisher.publish(b"x" * 6000, {}))
        await asyncio.sleep(0)
        with pytest.raises(PublishOverloadedError):
            await world.publisher.publish(b"x" * 6000, {})
        assert await first
        assert await world.publisher.publish(b"x" * 6000, {})
