"""The batching publisher against a real Pub/Sub server: answers, batches, outages, bounds, the end."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
from google.pubsub_v1 import types

from service.clients import Clients
from service.errors import (
    PublishOverloadedError,
    PublishRefusedError,
    PublishUnavailableError,
    ShuttingDownError,
)
from service.local.faults import Fault, FaultSwitch
from service.local.grpc_server import Method, start_server, unary_handlers
from service.local.pubsub import PubsubServer
from service.publisher import MAX_CALLS, Publisher
from tests.serving import HANGING, NOBODY, Reader, pubsub_with_topic, settings_for, until


@asynccontextmanager
async def publishing(settings):
    clients = Clients(settings)
    publisher = Publisher(clients, settings)
    try:
        yield publisher
    finally:
        await publisher.close()
        await clients.close()


async def outcomes(publisher, count):
    return await asyncio.gather(*(publisher.publish(b"x", {}) for _ in range(count)), return_exceptions=True)


async def test_a_message_is_in_the_topic_when_its_id_is_returned(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, reader), publishing(settings) as publisher:
        message_id = await publisher.publish(b"hello", {"event_id": "1"})
        [message] = await reader.pull(1)
        assert (message.message_id, message.data, dict(message.attributes)) == (
            message_id,
            b"hello",
            {"event_id": "1"},
        )


async def test_two_thousand_concurrent_publishes_get_distinct_ids_in_few_calls(tmp_path):
    async with pubsub_with_topic(tmp_path) as (server, settings, reader), publishing(settings) as publisher:
        ids = await asyncio.gather(*(publisher.publish(b"x", {"event_id": str(i)}) for i in range(2000)))
        assert len(set(ids)) == 2000
        assert server.faults.calls["Publish"] <= 10
        found = {message.message_id: message.attributes["event_id"] for message in await reader.pull(2000)}
        assert found == {message_id: str(i) for i, message_id in enumerate(ids)}


async def test_a_lone_caller_does_not_wait_for_a_batch_to_fill(tmp_path):
    async with (
        pubsub_with_topic(tmp_path, publish_linger_seconds=1.0) as (_, settings, _reader),
        publishing(settings) as publisher,
    ):
        await publisher.publish(b"x", {})
        started = time.monotonic()
        await publisher.publish(b"x", {})
        assert time.monotonic() - started < 0.5


async def test_a_batch_keeps_to_the_limit_of_bytes(tmp_path):
    async with (
        pubsub_with_topic(tmp_path, publish_batch_bytes=10_000) as (server, settings, _),
        publishing(settings) as publisher,
    ):
        await asyncio.gather(*(publisher.publish(b"x" * 3000, {}) for _ in range(30)))
        assert 10 <= server.faults.calls["Publish"] <= 20


async def test_a_topic_that_is_not_there_is_a_refusal_that_names_it(tmp_path):
    async with PubsubServer() as server:
        settings = settings_for(tmp_path, server.address)
        async with publishing(settings) as publisher:
            with pytest.raises(PublishRefusedError, match=settings.topic_path):
                await publisher.publish(b"x", {})


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL", "UNKNOWN", "ABORTED"])
async def test_a_transient_status_asks_the_caller_to_come_again(tmp_path, code):
    async with pubsub_with_topic(tmp_path) as (server, settings, _), publishing(settings) as publisher:
        server.faults.set([Fault(method="Publish", code=code)])
        with pytest.raises(PublishUnavailableError, match=code) as caught:
            await publisher.publish(b"x", {})
        assert caught.value.retryable
        assert caught.value.retry_after_seconds == 1
        server.faults.set([])
        assert await publisher.publish(b"x", {})


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "UNAUTHENTICATED", "FAILED_PRECONDITION"])
async def test_a_permanent_status_is_a_refusal(tmp_path, code):
    async with pubsub_with_topic(tmp_path) as (server, settings, _), publishing(settings) as publisher:
        server.faults.set([Fault(method="Publish", code=code)])
        with pytest.raises(PublishRefusedError, match=code):
            await publisher.publish(b"x", {})


async def test_a_pubsub_that_is_not_there_is_told_at_once(tmp_path):
    async with publishing(settings_for(tmp_path, NOBODY)) as publisher:
        await outcomes(publisher, 1)  # the first one also imports gRPC
        started = time.monotonic()
        with pytest.raises(PublishUnavailableError):
            await publisher.publish(b"x", {})
        assert time.monotonic() - started < 2


async def test_a_pubsub_that_hangs_is_given_up_at_the_deadline(tmp_path):
    async with (
        pubsub_with_topic(tmp_path, publish_deadline_seconds=0.4) as (server, settings, _),
        publishing(settings) as publisher,
    ):
        server.faults.set([HANGING])
        started = time.monotonic()
        with pytest.raises(PublishUnavailableError, match="DEADLINE_EXCEEDED"):
            await publisher.publish(b"x", {})
        assert 0.3 < time.monotonic() - started < 1.5


async def test_events_behind_hanging_calls_are_answered_by_their_own_deadline_too(tmp_path):
    limits = {"publish_deadline_seconds": 0.5, "publish_batch_messages": 1}
    async with (
        pubsub_with_topic(tmp_path, **limits) as (server, settings, _),
        publishing(settings) as publisher,
    ):
        server.faults.set([HANGING])
        started = time.monotonic()
        answers = await outcomes(publisher, MAX_CALLS * 4)
        assert time.monotonic() - started < 2
        assert {type(answer) for answer in answers} == {PublishUnavailableError}
        assert server.faults.calls["Publish"] <= MAX_CALLS


async def test_one_bad_message_does_not_sink_its_batch(tmp_path):
    async with pubsub_with_topic(tmp_path) as (server, settings, reader), publishing(settings) as publisher:
        bodies = [b"" if i in (3, 77) else b"x" for i in range(100)]  # an empty message is refused
        answers = await asyncio.gather(
            *(publisher.publish(body, {}) for body in bodies), return_exceptions=True
        )
        refused = [i for i, answer in enumerate(answers) if isinstance(answer, PublishRefusedError)]
        assert refused == [3, 77]
        assert len({answer for answer in answers if isinstance(answer, str)}) == 98
        assert len(await reader.pull(98)) == 98
        assert server.faults.calls["Publish"] < 40


@asynccontextmanager
async def pubsub_that_answers(message_ids):
    """A Pub/Sub that takes every Publish call and answers with these ids."""

    async def publish(request, context):
        return types.PublishResponse.pb()(message_ids=message_ids)

    method = Method(publish, types.PublishRequest.pb(), types.PublishResponse.pb())
    handlers = [unary_handlers("google.pubsub.v1.Publisher", {"Publish": method}, FaultSwitch())]
    server, address = await start_server(handlers, "127.0.0.1", 0)
    yield address
    await server.stop(None)


@pytest.mark.parametrize("message_ids", [[], [""], ["1", "2"]])
async def test_an_answer_without_an_id_for_each_event_promises_nothing(tmp_path, message_ids):
    async with (
        pubsub_that_answers(message_ids) as address,
        publishing(settings_for(tmp_path, address)) as publisher,
    ):
        [outcome] = await outcomes(publisher, 1)
        assert isinstance(outcome, PublishUnavailableError)


async def test_publishing_goes_on_when_pubsub_is_back_on_its_address(tmp_path):
    async with pubsub_with_topic(tmp_path) as (server, settings, _):
        port = int(server.address.rpartition(":")[2])
        publisher_clients = Clients(settings)
        publisher = Publisher(publisher_clients, settings)
        assert await publisher.publish(b"before", {})
    assert isinstance((await outcomes(publisher, 1))[0], PublishUnavailableError)
    async with PubsubServer(port=port):
        clients = Clients(settings)
        await Reader(clients, settings).make_topic()
        deadline = time.monotonic() + 5
        while isinstance((await outcomes(publisher, 1))[0], PublishUnavailableError):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        assert await publisher.publish(b"after", {})
        await publisher.close()
        await publisher_clients.close()
        await clients.close()


async def test_a_caller_that_goes_away_does_not_take_its_batch_along(tmp_path):
    async with pubsub_with_topic(tmp_path) as (server, settings, reader), publishing(settings) as publisher:
        server.faults.set([Fault(method="Publish", delay_seconds=0.2)])
        tasks = [asyncio.create_task(publisher.publish(b"x", {"event_id": str(i)})) for i in range(10)]
        await until(lambda: server.faults.calls["Publish"])
        for task in tasks[::2]:
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(answer, str) for answer in answers] == [False, True] * 5
        assert len(await reader.pull(10)) == 10


async def test_too_many_events_are_refused_at_once(tmp_path):
    async with (
        pubsub_with_topic(tmp_path, publish_inflight_messages=5) as (server, settings, _),
        publishing(settings) as publisher,
    ):
        server.faults.set([Fault(method="Publish", delay_seconds=0.2)])
        answers = await outcomes(publisher, 8)
        assert [type(answer) for answer in answers] == [str] * 5 + [PublishOverloadedError] * 3
        server.faults.set([])
        assert await publisher.publish(b"x", {})


async def test_too_many_bytes_are_refused_at_once(tmp_path):
    async with (
        pubsub_with_topic(tmp_path, publish_inflight_bytes=10_000) as (server, settings, _),
        publishing(settings) as publisher,
    ):
        server.faults.set([Fault(method="Publish", delay_seconds=0.2)])
        first = asyncio.create_task(publisher.publish(b"x" * 6000, {}))
        await asyncio.sleep(0)
        with pytest.raises(PublishOverloadedError):
            await publisher.publish(b"x" * 6000, {})
        assert await first
        assert await publisher.publish(b"x" * 6000, {})


async def test_close_under_load_lets_everything_finish_and_then_refuses(tmp_path):
    async with pubsub_with_topic(tmp_path) as (server, settings, reader):
        clients = Clients(settings)
        publisher = Publisher(clients, settings)
        server.faults.set([Fault(method="Publish", delay_seconds=0.05)])
        tasks = [asyncio.create_task(publisher.publish(b"x", {})) for _ in range(3000)]
        await asyncio.sleep(0)
        await publisher.close()
        assert len({task.result() for task in tasks}) == 3000
        with pytest.raises(ShuttingDownError):
            await publisher.publish(b"x", {})
        assert len(await reader.pull(3000)) == 3000
        await clients.close()


async def test_close_while_pubsub_hangs_fails_everything_within_the_deadline(tmp_path):
    limits = {"publish_deadline_seconds": 0.5, "publish_batch_messages": 10}
    async with pubsub_with_topic(tmp_path, **limits) as (server, settings, _):
        clients = Clients(settings)
        publisher = Publisher(clients, settings)
        server.faults.set([HANGING])
        tasks = [asyncio.create_task(publisher.publish(b"x", {})) for _ in range(500)]
        await asyncio.sleep(0)
        started = time.monotonic()
        await publisher.close()
        assert time.monotonic() - started < 2
        assert {type(task.exception()) for task in tasks} == {PublishUnavailableError}
        await clients.close()
