"""Dead letters are published again, each once, whatever happens meanwhile: against Pub/Sub and BigQuery."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest

from service.dead_letters import replayer as replayer_module
from service.dead_letters import room
from service.dead_letters.replayer import Replayer
from service.dead_letters.table import DeadLetterTable
from service.models import utc_now
from tests.bigquery_servers import queries_more, set_faults
from tests.dead_letter_world import (
    AWAY,
    EARLY,
    ended,
    letter,
    letter_bigquery,  # noqa: F401 - a fixture
    letter_service,
    letter_tables,  # noqa: F401 - a fixture
    numbers,
    payloads,
    published,
    read_of,
    replay,
)
from tests.publishing import publishing, stopped_while_woken
from tests.sample_metrics import labelled, scraped
from tests.serving import assert_problem, settings_for


async def test_every_letter_is_published_once_and_the_dry_run_says_the_same_numbers(
    tmp_path, tables, database_url, monkeypatch
):
    monkeypatch.setattr(replayer_module, "BATCH_LETTERS", 100)
    copies = [letter(number, failed_at=EARLY) for number in range(0, 250, 10)]
    cut = letter(900, payload=b"x" * 6_000_001)
    tables.add(*(letter(number) for number in range(250)), *copies, cut)
    async with letter_service(tmp_path, tables, database_url=database_url) as world:
        dry = await replay(world.client, dry_run=True)
        assert (dry["state"], dry["cause"]) == ("DONE", None)
        assert await published(world, 0) == []
        real = await replay(world.client)
        expected = {"letters": 276, "read": 276, "replayed": 250, "repeated": 25, "unreplayable": 1}
        assert numbers(dry) == numbers(real) == expected
        found = await payloads(world, 250)
        assert found == Counter(b"{%d" % number for number in range(250))
        counted = labelled(await scraped(world.client), "signin_replay_letters_total")
        assert counted == {"replayed": 250, "repeated": 25, "unreplayable": 1}
        left = await replay(world.client)
        assert (left["state"], left["replayed"], left["repeated"]) == ("DONE", 0, 275)
        assert await published(world, 0) == []
        again = await replay(world.client, again=True)
        assert (again["replayed"], again["repeated"]) == (250, 25)
        assert await payloads(world, 250) == found


async def test_the_message_is_the_first_one_with_the_marks_of_a_replay(tmp_path, tables):
    tables.add(letter(1, payload=b"\xff\x00", attributes={"event_id": "e-1", "k": "v"}, event_id="e-1"))
    async with letter_service(tmp_path, tables) as world:
        found = await replay(world.client)
        (message,) = await published(world, 1)
    attributes = dict(message.attributes)
    key = attributes["replay_of"]
    assert message.data == b"\xff\x00"
    assert attributes == {
        "event_id": f"replay:{found['id']}:{key}",
        "original_event_id": "e-1",
        "replay_of": key,
        "k": "v",
    }


@pytest.mark.parametrize("batch", [4, 1000])
async def test_a_replay_reads_on_behind_what_was_replayed_until_it_has_published_as_many_as_it_may(
    tmp_path, tables, database_url, monkeypatch, batch
):
    monkeypatch.setattr(replayer_module, "BATCH_LETTERS", batch)
    torn = letter(100, reason="file_corrupt", failed_at="2026-01-01T00:00:00.000000Z")
    tables.add(torn, *(letter(number) for number in range(25)), *(letter(number) for number in range(10)))
    async with letter_service(tmp_path, tables, database_url=database_url) as world:
        expected = [
            {"letters": 36, "read": 20, "replayed": 10, "repeated": 9, "unreplayable": 1},
            {"letters": 36, "read": 31, "replayed": 10, "repeated": 20, "unreplayable": 1},
            {"letters": 36, "read": 36, "replayed": 5, "repeated": 30, "unreplayable": 1},
        ]
        left = "It ended at most_letters (10); letters not looked at: {}."
        for count, (wanted, cause) in enumerate(
            zip(expected, (left.format(16), left.format(5), None), strict=True)
        ):
            dry = await replay(world.client, most_letters=10, dry_run=True)
            real = await replay(world.client, most_letters=10)
            assert numbers(dry) == numbers(real) == wanted
            assert dry["state"] == real["state"] == "DONE"
            assert dry["cause"] == real["cause"] == cause
            assert await payloads(world, wanted["replayed"]) == Counter(
                b"{%d" % number for number in range(10 * count, 10 * count + wanted["replayed"])
            )
        again = await replay(world.client, most_letters=25, again=True)
        assert (again["replayed"], again["cause"]) == (25, None)


async def test_what_damage_left_of_a_line_is_not_published_as_a_message(tmp_path, tables):
    torn = {"stage": "decode", "reason": "file_corrupt", "message_id": None, "publish_time": None}
    tables.add(letter(1, payload=b"", **torn), letter(2, payload=b'{"userid": "u', **torn), letter(3))
    async with letter_service(tmp_path, tables) as world:
        dry = await replay(world.client, dry_run=True)
        real = await replay(world.client)
        expected = {"letters": 3, "read": 3, "replayed": 1, "repeated": 0, "unreplayable": 2}
        assert numbers(dry) == numbers(real) == expected
        assert await payloads(world, 1) == Counter([b"{3"])


async def test_only_what_the_filters_let_through_is_replayed(tmp_path, tables):
    tables.add(*(letter(number) for number in range(5)))
    tables.add(*(letter(number, stage="write", reason="row_refused") for number in range(5, 9)))
    async with letter_service(tmp_path, tables) as world:
        one = await replay(world.client, message_id="3")
        assert numbers(one) == {"letters": 1, "read": 1, "replayed": 1, "repeated": 0, "unreplayable": 0}
        rest = await replay(world.client, reason="invalid_json")
        assert (rest["replayed"], rest["repeated"]) == (4, 1)
        some = await replay(world.client, stage="write", most_letters=3)
        assert (some["letters"], some["read"], some["replayed"]) == (4, 3, 3)
        assert await payloads(world, 8) == Counter(b"{%d" % number for number in range(8))


async def test_what_fails_after_the_replay_began_is_left_to_the_next(tmp_path, tables):
    late = (utc_now() + timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    tables.add(letter(1), letter(2, failed_at=late))
    async with letter_service(tmp_path, tables) as world:
        found = await replay(world.client, until="2999-01-01T00:00:00Z")
    assert (found["letters"], found["replayed"]) == (1, 1)


async def test_one_replay_at_a_time_until_it_is_cancelled(tmp_path, tables, monkeypatch):
    monkeypatch.setattr(replayer_module, "BATCH_LETTERS", 50)
    monkeypatch.setattr(room, "MOST_WAITING_EVENTS", 10)
    tables.add(*(letter(number) for number in range(200)))
    async with letter_service(tmp_path, tables) as world:
        world.server.faults.set([AWAY])
        first = await world.client.post("/dead-letters/replay", json={})
        await read_of(world, first.headers["Location"], 50)
        second = await world.client.post("/dead-letters/replay", json={"dry_run": True})
        problem = assert_problem(second, 409, "replay_in_progress")
        assert problem["replay_id"] == first.json()["id"]
        cancelled = await world.client.post(first.headers["Location"] + "/cancel")
        assert (cancelled.json()["state"], cancelled.json()["replayed"]) == ("CANCELLED", 50)
        world.server.faults.set([])
        # What had gone to the outbox is published, the next replay takes the rest.
        rest = await replay(world.client)
        assert (rest["replayed"], rest["repeated"]) == (150, 50)
        assert await payloads(world, 200) == Counter(b"{%d" % number for number in range(200))
        listed = (await world.client.get("/dead-letters/replays")).json()
        assert [each["state"] for each in listed["replays"]] == ["DONE", "CANCELLED"]


async def test_what_a_dead_process_left_is_finished_by_another_and_nothing_goes_twice(
    tmp_path, tables, database_url, monkeypatch
):
    monkeypatch.setattr(replayer_module, "BATCH_LETTERS", 50)
    monkeypatch.setattr(room, "MOST_WAITING_EVENTS", 10)
    tables.add(*(letter(number) for number in range(200)))
    async with letter_service(tmp_path, tables, database_url=database_url) as world:
        world.server.faults.set([AWAY])
        location = (await world.client.post("/dead-letters/replay", json={})).headers["Location"]
        await read_of(world, location, 50)
        # Its own process holds on, and does not know that its time is over: as one that was suspended.
        async with publishing(world.settings) as other:
            table = DeadLetterTable(world.settings)
            later = lambda: utc_now() + timedelta(seconds=replayer_module.HOLD_SECONDS + 1)  # noqa: E731
            monkeypatch.setattr(room, "MOST_WAITING_EVENTS", 1000)
            await asyncio.wait_for(Replayer(other.database, other.outbox, table, later).tick(), 20)
            await table.close()
        found = await ended(world.client, location)
        assert (found["state"], found["replayed"], found["repeated"]) == ("DONE", 200, 0)
        world.server.faults.set([])
        assert await payloads(world, 200) == Counter(b"{%d" % number for number in range(200))


@pytest.mark.parametrize("steps", range(4))
async def test_a_replayer_that_is_stopped_at_the_moment_in_which_it_is_woken_ends_all_the_same(
    tmp_path, steps
):
    async with publishing(settings_for(tmp_path)) as world:
        replayer = Replayer(world.database, world.outbox, DeadLetterTable(settings_for(tmp_path)))
        await stopped_while_woken(replayer, replayer._woken, steps)


async def test_a_bigquery_that_comes_back_does_not_end_the_replay(tmp_path, tables, monkeypatch):
    monkeypatch.setattr("service.dead_letters.table.QUERY_SECONDS", 0.3)
    tables.add(letter(1))
    async with letter_service(tmp_path, tables) as world:
        set_faults(tables.url, {"method": "queries", "code": "503"}, {"method": "jobs", "code": "503"})
        answer = await world.client.post("/dead-letters/replay", json={})
        await queries_more(tables.url, 2)  # it has failed, and tries again
        set_faults(tables.url)
        found = await ended(world.client, answer.headers["Location"])
    assert (found["state"], found["replayed"]) == ("DONE", 1)


async def test_a_replay_of_a_table_that_is_not_there_fails_with_the_cause(tmp_path, tables):
    tables.dataset = "nowhere"
    async with letter_service(tmp_path, tables) as world:
        found = await replay(world.client)
    assert found["state"] == "FAILED"
    assert "nowhere.dead_letters" in found["cause"]


async def test_a_table_of_other_types_ends_the_replay_at_once_and_is_named(tmp_path, tables):
    table = f"`{tables.letters}`"
    columns = [
        "stage",
        "reason",
        "detail",
        "attributes",
        "message_id",
        "event_id",
        "pipeline_version",
        "job_id",
    ]
    texts = ", ".join(f"{column} STRING" for column in columns)
    for statement in (
        f"DROP TABLE {table}",
        f"CREATE TABLE {table} (failed_at TIMESTAMP, publish_time TIMESTAMP, payload BYTES, {texts})",
        f"INSERT INTO {table} (failed_at, stage, reason, attributes) "
        "VALUES (TIMESTAMP '2026-01-02 03:04:05', 'decode', 'invalid_json', 'text')",
    ):
        tables.client.query(statement).result(timeout=10)
    async with letter_service(tmp_path, tables) as world:
        found = await replay(world.client)
        assert found["state"] == "FAILED"
        assert "columns of other types" in found["cause"]
        assert_problem(await world.client.get("/dead-letters"), 502, "bigquery_refused")


@pytest.mark.parametrize(
    "body", [{"colour": "red"}, {"stage": "all"}, {"since": "never"}, {"most_letters": 0}]
)
async def test_a_replay_that_means_nothing_is_refused(tmp_path, tables, body):
    async with letter_service(tmp_path, tables) as world:
        assert_problem(await world.client.post("/dead-letters/replay", json=body), 422, "invalid_request")
        assert (await world.client.get("/dead-letters/replays")).json()["replays"] == []


async def test_replays_are_listed_in_pages_and_an_unknown_one_is_not_found(tmp_path, tables, database_url):
    tables.add(letter(1))
    async with letter_service(tmp_path, tables, database_url=database_url) as world:
        ids = [(await replay(world.client, dry_run=True))["id"] for _ in range(3)]
        first = (await world.client.get("/dead-letters/replays", params={"page_size": 2})).json()
        assert [each["id"] for each in first["replays"]] == ids[:0:-1]
        query = {"page_token": first["next_page_token"]}
        rest = (await world.client.get("/dead-letters/replays", params=query)).json()
        assert ([each["id"] for each in rest["replays"]], rest["next_page_token"]) == ([ids[0]], None)
        for path in ("nothing", "0" * 20):
            answer = await world.client.get(f"/dead-letters/replays/{path}")
            assert_problem(answer, 404, "replay_not_found")
        assert (await world.client.post(f"/dead-letters/replays/{'0' * 20}/cancel")).status_code == 404
