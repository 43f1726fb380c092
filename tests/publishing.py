"""The publisher with its outbox, breaker and relay on a real database, without the HTTP service around it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

from service.breaker import Breaker
from service.clients import Clients
from service.config import Settings
from service.db import Database, migrate
from service.outbox import Outbox
from service.publisher import Publisher, Receipt
from service.relay import Relay
from service.topic import Topic
from tests.serving import until

SPOOLED = Receipt("spooled", None)


def breaker_for(settings):
    return Breaker(
        failures=settings.breaker_failures,
        open_seconds=settings.breaker_open_seconds,
        probe_seconds=settings.breaker_open_seconds,
    )


def migrated(settings):
    """Brings the embedded database of the settings to the newest schema; one that they name is there."""
    if not settings.database_url:
        migrate(settings)
    return settings


@asynccontextmanager
async def publishing(settings, *, relay=False):
    """Yields `publisher`, `outbox`, `breaker`, `relay` and `topic`; the relay runs only when asked to."""
    await asyncio.to_thread(migrated, settings)
    clients, database = Clients(settings), Database(settings)
    topic, outbox, breaker = Topic(clients, settings), Outbox(database, settings), breaker_for(settings)
    publisher = Publisher(topic, outbox, breaker, settings)
    the_relay = Relay(topic, outbox, breaker, settings)
    running = asyncio.create_task(the_relay.run()) if relay else None
    try:
        yield SimpleNamespace(
            publisher=publisher,
            outbox=outbox,
            breaker=breaker,
            relay=the_relay,
            topic=topic,
            clients=clients,
            database=database,
        )
    finally:
        if running:
            running.cancel()
            await asyncio.wait([running])
        await publisher.close()
        await clients.close()
        await database.close()


def settings_with(database_url, **values):
    return Settings(_env_file=None, database_url=database_url, **values)


async def outcomes(world, count):
    return await asyncio.gather(
        *(world.publisher.publish(b"x", {}) for _ in range(count)), return_exceptions=True
    )


def without_database(settings):
    """The settings with a database that is not there."""
    return settings.model_copy(update={"database_url": "sqlite:////proc"})


async def outbox_events(outbox):
    return [row async for row in outbox.events()]


def message(number):
    """The data and attributes of event `number`."""
    return b'{"n":%d}' % number, {"event_id": f"event-{number}"}


async def stopped_while_woken(worker, woken, steps):
    """Cancels `worker.run()` so many steps of the event loop after `woken` was set; fails if it goes on."""
    running = asyncio.create_task(worker.run())
    await until(lambda: woken._waiters)
    woken.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    running.cancel()
    ended, _ = await asyncio.wait([running], timeout=2)
    running.cancel()
    await asyncio.wait([running])
    assert ended
