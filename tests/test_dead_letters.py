"""GET /dead-letters: what could not become a row, as an operator looks for it."""

from __future__ import annotations

import base64

import pytest

from service.dead_letters import table as dead_letter_table
from tests.bigquery_servers import local_bigquery, set_faults
from tests.dead_letter_world import EARLY, LetterTables, letter, letter_service
from tests.serving import NOBODY, assert_problem


@pytest.fixture(scope="module")
def bigquery(tmp_path_factory):
    with local_bigquery(tmp_path_factory.mktemp("bigquery")) as url:
        yield url


@pytest.fixture
def tables(bigquery, request):
    tables = LetterTables(bigquery, request.node.name.partition("[")[0][:200])
    yield tables
    set_faults(bigquery)
    tables.close()


async def look(world, **query):
    answer = await world.client.get("/dead-letters", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_letters_come_newest_first_and_whole_with_a_count_for_each_reason(tmp_path, tables):
    tables.add(
        letter(1, payload=b"\xff\x00", attributes={"event_id": "e", "é": "ü"}, event_id="e", job_id="job"),
        letter(2, stage="validate", reason="date_invalid", message_id=None, publish_time=None),
        letter(3),
    )
    async with letter_service(tmp_path, tables) as world:
        page = await look(world)
    assert page["counts"] == [
        {"stage": "decode", "reason": "invalid_json", "count": 2},
        {"stage": "validate", "reason": "date_invalid", "count": 1},
    ]
    assert [each["message_id"] for each in page["dead_letters"]] == ["3", None, "1"]
    first = page["dead_letters"][2]
    assert base64.b64decode(first["payload"]) == b"\xff\x00"
    assert (first["payload_bytes"], first["attributes"]) == (2, {"event_id": "e", "é": "ü"})
    assert (first["job_id"], first["pipeline_version"], first["detail"]) == ("job", None, "no JSON")
    assert first["publish_time"] == "2026-01-02T03:04:04.000001Z"
    assert page["next_page_token"] is None


async def test_each_filter_narrows_the_list_and_the_counts(tmp_path, tables):
    tables.add(
        letter(1, event_id='it\'s "quoted" -- @reason'),
        letter(2, stage="write", reason="row_refused"),
        letter(3, failed_at="2026-03-01T00:00:00.000000Z"),
    )
    async with letter_service(tmp_path, tables) as world:
        for query, found in (
            ({"event_id": 'it\'s "quoted" -- @reason'}, ["1"]),
            ({"reason": "row_refused"}, ["2"]),
            ({"stage": "write"}, ["2"]),
            ({"message_id": "3"}, ["3"]),
            ({"since": "2026-03-01T01:00:00+01:00"}, ["3"]),
            ({"until": "2026-03-01T00:00:00"}, ["2", "1"]),
            ({"since": "2026-03-01T00:00:00.000001Z"}, []),
            ({"reason": "invalid_json", "stage": "write"}, []),
        ):
            page = await look(world, **query)
            assert [each["message_id"] for each in page["dead_letters"]] == found, query
            assert sum(each["count"] for each in page["counts"]) == len(found), query


async def test_pages_have_each_letter_once_where_many_failed_in_the_same_microsecond(tmp_path, tables):
    same = [letter(number, failed_at=EARLY, message_id=None) for number in range(40)]
    tables.add(letter(100), *same, letter(200))
    async with letter_service(tmp_path, tables) as world:
        payloads, query = [], {"page_size": 7}
        while True:
            page = await look(world, **query)
            payloads += [each["payload"] for each in page["dead_letters"]]
            if page["next_page_token"] is None:
                break
            query["page_token"] = page["next_page_token"]
            assert len(payloads) < 100
    assert page["counts"] is None
    assert len(payloads) == len(set(payloads)) == 42


async def test_a_long_payload_is_shown_by_its_beginning_and_its_size(tmp_path, tables):
    tables.add(letter(1, payload=b"x" * 100_000))
    async with letter_service(tmp_path, tables) as world:
        (shown,) = (await look(world))["dead_letters"]
    assert base64.b64decode(shown["payload"]) == b"x" * 4096
    assert shown["payload_bytes"] == 100_000


async def test_a_page_token_of_somebody_else_is_refused(tmp_path, tables):
    foreign = ["nonsense", "W10", "WyIyMDI2LTAxLTAyVDAzOjA0OjA1WiIsLTFd"]
    foreign.append("WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzE0OjAwIiwxXQ")  # in UTC before the year 1
    async with letter_service(tmp_path, tables) as world:
        for token in foreign:
            answer = await world.client.get("/dead-letters", params={"page_token": token})
            assert_problem(answer, 400, "invalid_page_token")


async def test_a_query_that_means_nothing_is_refused(tmp_path, tables):
    async with letter_service(tmp_path, tables) as world:
        for query in (
            {"reason": "No Such'"},
            {"stage": "all"},
            {"since": "yesterday"},
            {"since": "0001-01-01T00:00:00+14:00"},
            {"event_id": ""},
            {"event_id": "a\0b"},
            {"page_size": "0"},
        ):
            answer = await world.client.get("/dead-letters", params=query)
            assert_problem(answer, 422, "invalid_request")


async def test_a_table_that_does_not_exist_is_named(tmp_path, tables):
    tables.dataset = "nowhere"
    async with letter_service(tmp_path, tables) as world:
        problem = assert_problem(await world.client.get("/dead-letters"), 404, "dead_letter_table_not_found")
    assert "nowhere.dead_letters" in problem["detail"]


async def test_a_table_of_other_columns_is_told_as_refused(tmp_path, tables):
    tables.client.query(f"DROP TABLE `{tables.letters}`").result(timeout=10)
    tables.client.query(f"CREATE TABLE `{tables.letters}` (reason STRING)").result(timeout=10)
    async with letter_service(tmp_path, tables) as world:
        assert_problem(await world.client.get("/dead-letters"), 502, "bigquery_refused")


@pytest.mark.parametrize(
    ("code", "status", "problem"), [("503", 503, "bigquery_unavailable"), ("403", 502, "bigquery_refused")]
)
async def test_an_outage_of_bigquery_is_told_in_time(tmp_path, tables, monkeypatch, code, status, problem):
    monkeypatch.setattr(dead_letter_table, "QUERY_SECONDS", 0.5)
    set_faults(tables.url, {"code": code})
    async with letter_service(tmp_path, tables) as world:
        found = assert_problem(await world.client.get("/dead-letters"), status, problem)
    assert found["retryable"] is (status == 503)


async def test_a_bigquery_that_does_not_answer_is_given_up_and_the_service_ends(
    tmp_path, tables, monkeypatch
):
    monkeypatch.setattr(dead_letter_table, "ANSWER_SECONDS", 0.3)
    set_faults(tables.url, {"delay_seconds": 3.0})
    async with letter_service(tmp_path, tables) as world:
        assert_problem(await world.client.get("/dead-letters"), 503, "bigquery_unavailable")


async def test_nobody_at_the_address_of_bigquery_is_told_too(tmp_path, tables, monkeypatch):
    monkeypatch.setattr(dead_letter_table, "QUERY_SECONDS", 0.5)
    tables.url = f"http://{NOBODY}"
    async with letter_service(tmp_path, tables) as world:
        assert_problem(await world.client.get("/dead-letters"), 503, "bigquery_unavailable")
