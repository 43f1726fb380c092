"""Dead letters are published again, each once, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from apache_beam.pvalue import TaggedOutput
from google.pubsub_v1 import PubsubMessage
from hypothesis import given
from hypothesis import strategies as st

from service.dead_letters import replayer as replayer_module
from service.dead_letters import room
from service.dead_letters.letters import Letter
from service.dead_letters.replayer import Replayer
from service.dead_letters.table import DeadLetterTable
from service.local.faults import Fault
from service.models import utc_now
from tests.bigquery_servers import local_bigquery, set_faults
from tests.dead_letter_world import EARLY, LetterTables, ended, letter, letter_service, numbers, replay
from tests.publishing import publishing, stopped_while_woken
from tests.sample_metrics import labelled, scraped
from tests.serving import assert_problem, settings_for
from transforms.pubsub_message import MessageExtractingFn
from transforms.replay import event_id_of, replay_attributes
from transforms.signin_event import is_event_id

AWAY = Fault(method="Publish", code="UNAVAILABLE")
SOME_LETTER = Letter(
    failed_at=datetime(2026, 1, 2, tzinfo=UTC),
    stage="decode",
    reason="invalid_json",
    detail="",
    payload=b"{",
    attributes={"event_id": "e-1", "trace": "t"},
    message_id="17",
    publish_time=datetime(2026, 1, 1, tzinfo=UTC),
    event_id="e-1",
)


def changed(**values):
    return Letter(**({name: getattr(SOME_LETTER, name) for name in Letter.__slots__} | values))


# Which letter is which, and what its message carries


def test_two_rows_of_one_message_are_one_letter():
    again = changed(
        failed_at=datetime(2026, 5, 5, tzinfo=UTC), reason="row_refused", stage="write", detail="x"
    )
    assert again.key == SOME_LETTER.key


@pytest.mark.parametrize("change", [{"message_id": "18"}, {"publish_time": datetime(2026, 1, 2, tzinfo=UTC)}])
def test_another_message_is_another_letter(change):
    assert changed(**change).key != SOME_LETTER.key


@pytest.mark.parametrize(
    "change", [{"payload": b"}"}, {"event_id": "e-2"}, {"attributes": {"line": "2"}}, {"publish_time": None}]
)
def test_without_a_message_id_the_content_tells_letters_apart(change):
    nameless = changed(message_id=None)
    assert changed(message_id=None).key == nameless.key != SOME_LETTER.key
    assert changed(message_id=None, **change).key != nameless.key


def test_a_replay_is_no_copy_for_the_deduplication_and_keeps_its_event_id():
    payload, first = SOME_LETTER.message("a" * 20)
    _, second = SOME_LETTER.message("b" * 20)
    assert payload == SOME_LETTER.payload
    assert first["trace"] == "t"
    assert len({"e-1", first["event_id"], second["event_id"]}) == 3
    assert is_event_id(first["event_id"])
    assert SOME_LETTER.message("a" * 20)[1] == first
    assert event_id_of(first) == event_id_of(second) == "e-1"


def test_a_letter_without_an_event_id_gets_the_same_one_at_each_replay():
    nameless = changed(attributes={}, event_id=None)
    ids = {event_id_of(nameless.message(replay_id)[1]) for replay_id in ("a", "b")}
    assert ids == {f"letter:{nameless.key}"}
    assert is_event_id(ids.pop())


def test_a_letter_that_knows_its_event_id_only_by_the_column_keeps_it():
    assert event_id_of(changed(attributes={}).message("a")[1]) == "e-1"


@given(st.dictionaries(st.text(), st.text(), max_size=5), st.lists(st.sampled_from("abc"), min_size=1))
def test_however_often_a_letter_fails_again_its_event_id_and_its_attributes_stay(attributes, replays):
    key = SOME_LETTER.key
    attributes = {name: value for name, value in attributes.items() if not name.startswith("goog")}
    attributes.pop("replay_of", None)
    wanted = event_id_of(attributes) or f"letter:{key}"
    current = attributes
    for name in replays:
        current = replay_attributes(current, key, name)
        assert event_id_of(current) == wanted
        assert current["event_id"] == f"replay:{name}:{key}"
    own = {"event_id", "replay_of", "original_event_id"}
    assert {n: v for n, v in current.items() if n not in own} == {
        n: v for n, v in attributes.items() if n not in own
    }


def processed(letter):
    """What the job makes of a letter's replay: the row, or the next dead letter."""
    data, attributes = letter.message("r" * 20)
    (output,) = MessageExtractingFn().process(PubsubMessage.pb()(data=data, attributes=attributes))
    return output.value if isinstance(output, TaggedOutput) else output


def test_what_fails_again_is_a_new_letter_of_the_same_event_and_can_be_replayed_again():
    row = processed(SOME_LETTER)
    assert (row["reason"], row["event_id"]) == ("invalid_json", "e-1")
    attributes = {record["key"]: record["value"] for record in row["attributes"]}
    assert attributes["replay_of"] == SOME_LETTER.key
    second = changed(attributes=attributes, event_id=row["event_id"], message_id="99")
    assert second.key != SOME_LETTER.key
    assert processed(second)["event_id"] == "e-1"


@pytest.mark.parametrize(
    ("attributes", "event_id"), [({"event_id": "e-1"}, "e-1"), ({}, f"letter:{changed(event_id=None).key}")]
)
def test_the_row_of_a_replay_has_the_event_id_of_the_first_message(attributes, event_id):
    payload = b'{"userid": "u", "date": "2026-01-02T03:04:05Z"}'
    mended = changed(payload=payload, attributes=attributes, event_id=attributes.get("event_id"))
    assert processed(mended)["event_id"] == event_id


# Against Pub/Sub and BigQuery


@pytest.fixture(scope="module")
def bigquery(tmp_path_factory):
    with local_bigquery(tmp_path_factory.mktemp("bigquery")) as url:
        yield url


@pytest.fixture
def tables(bigquery, request):
    tables = LetterTables(bigquery, request.node.name.replace("[", "_").replace("]", "")[:200])
    yield tables
    set_faults(bigquery)
    tables.close()


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


async def read_of(world, location, count):
    deadline = asyncio.get_running_loop().time() + 20
    while (await world.client.get(location)).json()["read"] < count:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


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


async def queries_more(url, count):
    """Waits until the local BigQuery was asked so many queries more."""
    async with httpx.AsyncClient() as client, asyncio.timeout(20):

        async def queries():
            calls = (await client.get(f"{url}/signin/faults")).json()
            return calls.get("queries", 0) + calls.get("jobs", 0)  # either way of asking

        before = await queries()
        while await queries() < before + count:  # noqa: ASYNC110 - the server is asked
            await asyncio.sleep(0.02)


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
