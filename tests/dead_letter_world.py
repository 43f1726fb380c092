"""The service with a Pub/Sub and a BigQuery of its own, and dead letters in its table."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from service.db import migrate
from service.local.faults import Fault
from service.models import utc_now
from tests.bigquery_servers import PROJECT, local_bigquery, set_faults
from tests.serving import pubsub_with_topic, serving
from transforms import bigquery_tables
from transforms.bigquery_rows import TableRef, dead_letter_row

AWAY = Fault(method="Publish", code="UNAVAILABLE")
EARLY = "2026-01-02T03:04:05.000006Z"
PUBLISHED = "2026-01-02T03:04:04.000001Z"


class LetterTables:
    """A dead-letter table of its own in a BigQuery that runs."""

    def __init__(self, url, dataset):
        self.url = url
        self.dataset = dataset
        self.letters = TableRef(PROJECT, dataset, "dead_letters")
        self.client = bigquery_tables.client(PROJECT, url)
        bigquery_tables.ensure_tables(self.client, TableRef(PROJECT, dataset, "signins"), self.letters)

    def add(self, *rows):
        for start in range(0, len(rows), 2000):
            part = rows[start : start + 2000]
            errors = self.client.insert_rows_json(
                str(self.letters), part, row_ids=[None] * len(part), timeout=30
            )
            assert errors == []

    def close(self):
        self.client.close()


def letter(number, **values):
    """The row of a dead letter; every number is another message."""
    given = {
        "stage": "decode",
        "reason": "invalid_json",
        "detail": "no JSON",
        "payload": b"{%d" % number,
        "message_id": str(number),
        "publish_time": PUBLISHED,
        "failed_at": f"2026-01-02T03:04:{number // 1000 % 60:02}.{number % 1000:03}000Z",
    }
    return dead_letter_row(**(given | values))


@asynccontextmanager
async def letter_service(tmp_path, tables, **values):
    """Yields `client` of a service, the Pub/Sub `server` and a `reader` of the topic."""
    async with pubsub_with_topic(
        tmp_path,
        bigquery_emulator_host=tables.url,
        project=PROJECT,
        dead_letter_table=f"{tables.dataset}.dead_letters",
        **values,
    ) as (server, settings, reader):
        await asyncio.to_thread(migrate, settings)
        async with serving(settings) as client:
            yield SimpleNamespace(client=client, server=server, reader=reader, settings=settings, seen=set())


async def replay(client, **body):
    """Asks for a replay and returns it when it has ended."""
    answer = await client.post("/dead-letters/replay", json=body)
    assert answer.status_code == 202, answer.text
    return await ended(client, answer.headers["Location"])


async def ended(client, location, seconds=30.0):
    deadline = utc_now().timestamp() + seconds
    while (found := (await client.get(location)).json())["ended_at"] is None:
        assert utc_now().timestamp() < deadline, found
        await asyncio.sleep(0.02)
    return found


def numbers(found):
    return {name: found[name] for name in ("letters", "read", "replayed", "repeated", "unreplayable")}


async def published(world, count):
    """The messages since the last call, once at least `count` are there and no more come."""
    found = {}
    deadline = asyncio.get_running_loop().time() + 20
    while True:
        before = len(found)
        # The reader acknowledges nothing, so that Pub/Sub delivers again what this took long for.
        new = [each for each in await world.reader.pull(1) if each.message_id not in world.seen]
        found.update({message.message_id: message for message in new})
        if len(found) >= count and len(found) == before:
            world.seen.update(found)
            return list(found.values())
        assert asyncio.get_running_loop().time() < deadline, len(found)
        await asyncio.sleep(0.02)


async def payloads(world, count):
    """How often each payload was published since the last call."""
    return Counter(message.data for message in await published(world, count))


async def read_of(world, location, count):
    deadline = asyncio.get_running_loop().time() + 20
    while (await world.client.get(location)).json()["read"] < count:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


@pytest.fixture(scope="module", name="bigquery")
def letter_bigquery(tmp_path_factory):
    with local_bigquery(tmp_path_factory.mktemp("bigquery")) as url:
        yield url


@pytest.fixture(name="tables")
def letter_tables(bigquery, request):
    tables = LetterTables(bigquery, re.sub(r"\W", "_", request.node.name)[-200:])
    yield tables
    set_faults(bigquery)
    tables.close()
