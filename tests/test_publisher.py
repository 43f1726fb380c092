"""The batching publisher against a real Pub/Sub server: answers, batches, outages, bounds, the end."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.errors import (
    OutboxFullError,
    ProblemError,
    PublishOverloadedError,
    PublishRefusedError,
    PublishUnavailableError,
    ShuttingDownError,
)
from service.local.faults import Fault
from service.local.pubsub import PubsubServer
from service.publisher import MAX_CALLS, Receipt
from tests.publishing import message, outbox_events, publishing, without_database
from tests.serving import HANGING, NOBODY, pubsub_with_topic, settings_for, until

SPOOLED = Receipt("spooled", None)


async def outcomes(world, count):
    return await asyncio.gather(
        *(world.publisher.publish(b"x", {}) for _ in range(count)), return_exceptions=True
    )


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


async def test_events_for_a_topic_that_is_not_there_are_kept_and_the_breaker_opens(tmp_path):
    async with PubsubServer() as server, publishing(settings_for(tmp_path, server.address)) as world:
        for i in range(5):
            assert await world.publisher.publish(*message(i)) == SPOOLED
        assert (world.breaker.is_closed, world.breaker.cause) == (False, "NOT_FOUND")
        assert len(await outbox_events(world.outbox)) == 5


async def test_a_message_that_the_topic_does_not_take_is_refused_and_not_kept(tmp_path):
    async with pubsub_with_topic(tmp_path) as (server, settings, _), publishing(settings) as world:
        server.faults.set([Fault(method="Publish", code="INVALID_ARGUMENT")])
        for _ in range(5):
            with pytest.raises(PublishRefusedError, match="INVALID_ARGUMENT"):
                await world.publisher.publish(b"x", {})
        assert world.breaker.is_closed
        assert await outbox_events(world.outbox) == []


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


async def test_close_under_load_lets_everything_finish_and_then_refuses(tmp_path):
    async with pubsub_with_topic(tmp_path) as (server, settings, reader), publishing(settings) as world:
        server.faults.set([Fault(method="Publish", delay_seconds=0.05)])
        tasks = [asyncio.create_task(world.publisher.publish(b"x", {})) for _ in range(3000)]
        await asyncio.sleep(0)
        await world.publisher.close()
        assert len({task.result().message_id for task in tasks}) == 3000
        for refused in (world.publisher.publish(b"x", {}), world.publisher.publish_all([(b"x", {})])):
            with pytest.raises(ShuttingDownError):
                await refused
        assert len(await reader.pull(3000)) == 3000


async def test_close_while_pubsub_hangs_keeps_everything_in_the_outbox(tmp_path, database_url):
    limits = {"publish_batch_messages": 10, "publish_patience_seconds": 3.0}
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url, **limits) as (server, settings, _),
        publishing(settings) as world,
    ):
        server.faults.set([HANGING])
        tasks = [asyncio.create_task(world.publisher.publish(*message(i))) for i in range(500)]
        await asyncio.sleep(0)
        started = time.monotonic()
        await world.publisher.close()
        assert time.monotonic() - started < 6
        assert {task.result() for task in tasks} == {SPOOLED}
        assert {row["event_id"] for row in await outbox_events(world.outbox)} == {
            f"event-{i}" for i in range(500)
        }


async def test_close_with_neither_pubsub_nor_database_answers_everybody(tmp_path):
    limits = {"publish_patience_seconds": 0.5}
    async with (
        pubsub_with_topic(tmp_path, **limits) as (server, settings, _),
        publishing(without_database(settings)) as world,
    ):
        server.faults.set([HANGING])
        tasks = [asyncio.create_task(world.publisher.publish(b"x", {})) for _ in range(50)]
        await asyncio.sleep(0)
        await world.publisher.close()
        assert all(isinstance(task.exception(), ProblemError) for task in tasks)


async def test_close_keeps_events_whose_call_cannot_even_begin(tmp_path, database_url, monkeypatch):
    limits = {"publish_patience_seconds": 0.2, "database_url": database_url}
    async with publishing(settings_for(tmp_path, NOBODY, **limits)) as world:
        monkeypatch.setattr(world.clients, "pubsub", asyncio.Event().wait)  # credentials that never come
        tasks = [asyncio.create_task(world.publisher.publish(*message(i))) for i in range(50)]
        await asyncio.sleep(0)
        started = time.monotonic()
        await world.publisher.close()
        assert time.monotonic() - started < 10
        assert {task.result() for task in tasks} == {SPOOLED}
        assert len(await outbox_events(world.outbox)) == 50


async def test_close_answers_those_whose_last_hope_is_a_probe_that_hangs(tmp_path, monkeypatch):
    limits = {"publish_patience_seconds": 0.1, "outbox_deadline_seconds": 0.1, "breaker_open_seconds": 0.01}
    async with publishing(without_database(settings_for(tmp_path, NOBODY, **limits))) as world:
        monkeypatch.setattr(world.clients, "pubsub", asyncio.Event().wait)  # credentials that never come
        world.breaker.failed("UNAVAILABLE", world.breaker.now(), hung=True)
        await until(lambda: world.breaker.seconds_to_probe() == 0)
        single = asyncio.create_task(world.publisher.publish(*message(1)))
        group = asyncio.create_task(world.publisher.publish_all([message(i) for i in range(2, 50)]))
        await until(lambda: world.breaker.state == "half_open")
        await world.publisher.close()
        assert world.publisher.load() == (0, 0.0)
        [answers, refusal] = await asyncio.wait_for(
            asyncio.gather(group, single, return_exceptions=True), timeout=5
        )
        assert {type(answer) for answer in (*answers, refusal)} == {PublishUnavailableError}
