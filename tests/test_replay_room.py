"""The room that a replay finds in the outbox: it waits, takes portions, and leaves the rest to sign-ins."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from service.dead_letters import replayer as replayer_module
from service.dead_letters import room
from tests.dead_letter_world import (
    AWAY,
    EARLY,
    ended,
    letter,
    letter_bigquery,  # noqa: F401 - a fixture
    letter_service,
    letter_tables,  # noqa: F401 - a fixture
    payloads,
    read_of,
    replay,
)
from tests.publishing import publishing
from tests.sample_metrics import scraped
from tests.serving import settings_for


async def test_letters_that_are_left_out_are_read_over_although_the_outbox_has_no_room_for_them(
    tmp_path, tables, database_url
):
    tables.add(letter(1, payload=b"x" * 2000), *(letter(number) for number in range(2, 9)))
    async with letter_service(tmp_path / "before", tables, database_url=database_url) as world:
        assert (await replay(world.client))["replayed"] == 8
        await payloads(world, 8)
    tables.add(letter(9))
    small = {"outbox_max_bytes": 1600}
    async with letter_service(tmp_path / "after", tables, database_url=database_url, **small) as world:
        found = await replay(world.client)
        assert (found["state"], found["replayed"], found["repeated"]) == ("DONE", 1, 8)
        assert await payloads(world, 1) == Counter([b"{9"])


async def test_while_pubsub_is_away_the_letters_wait_in_the_outbox_and_no_more_than_a_few(
    tmp_path, tables, monkeypatch
):
    monkeypatch.setattr(replayer_module, "BATCH_LETTERS", 50)
    monkeypatch.setattr(room, "MOST_WAITING_EVENTS", 100)
    tables.add(*(letter(number) for number in range(400)))
    async with letter_service(tmp_path, tables) as world:
        world.server.faults.set([AWAY])
        answer = await world.client.post("/dead-letters/replay", json={})
        location = answer.headers["Location"]
        await read_of(world, location, 150)
        await asyncio.sleep(0.3)  # it reads no further: it would look for room six times
        assert (await world.client.get(location)).json()["read"] == 150
        gauges = await scraped(world.client)
        assert (gauges["signin_replays",], gauges["signin_replay_left_letters",]) == (1, 250)
        world.server.faults.set([])
        found = await ended(world.client, location)
        assert (found["state"], found["replayed"]) == ("DONE", 400)
        assert await payloads(world, 400) == Counter(b"{%d" % number for number in range(400))


@pytest.mark.parametrize("bounds", [{"outbox_max_rows": 3}, {"outbox_max_bytes": 1600}])
async def test_an_outbox_smaller_than_a_batch_takes_the_letters_in_portions(tmp_path, tables, bounds):
    at_once = (letter(number, failed_at=EARLY) for number in range(5))  # portions end within one moment too
    tables.add(*at_once, *(letter(number) for number in range(5, 11)))
    async with letter_service(tmp_path, tables, **bounds) as world:
        found = await replay(world.client)
        assert (found["state"], found["read"], found["replayed"]) == ("DONE", 11, 11)
        assert await payloads(world, 11) == Counter(b"{%d" % number for number in range(11))


async def test_a_replay_goes_on_beside_parked_events_that_take_room_in_the_outbox(tmp_path, tables):
    tables.add(*(letter(number) for number in range(8)))
    async with publishing(settings_for(tmp_path)) as before:
        await before.outbox.spool([(b"parked", {}), (b"parked too", {})])
        claim = await before.outbox.claim(2, 1000)
        await before.outbox.finish(claim, [], dict.fromkeys((row.id for row in claim.rows), "refused"))
    async with letter_service(tmp_path, tables, outbox_max_rows=4) as world:
        found = await replay(world.client)
        assert (found["state"], found["replayed"]) == ("DONE", 8)
        assert await payloads(world, 8) == Counter(b"{%d" % number for number in range(8))


async def test_a_letter_that_no_outbox_of_these_bounds_can_hold_fails_the_replay_with_the_setting(
    tmp_path, tables
):
    tables.add(letter(1), letter(2), letter(3, payload=b"x" * 2000), letter(4))
    async with letter_service(tmp_path, tables, outbox_max_bytes=1600) as world:
        found = await replay(world.client)
        assert (found["state"], found["read"], found["replayed"]) == ("FAILED", 2, 2)
        assert "SIGNIN_OUTBOX_MAX_BYTES" in found["cause"]
        assert await payloads(world, 2) == Counter([b"{1", b"{2"])
