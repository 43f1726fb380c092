"""The end of the publisher: whoever still waits is answered, and no event is lost."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.errors import ProblemError, PublishUnavailableError, ShuttingDownError
from service.local.faults import Fault
from tests.publishing import SPOOLED, message, outbox_events, publishing, without_database
from tests.serving import HANGING, NOBODY, pubsub_with_topic, settings_for, until


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
