"""Rows reach BigQuery or become dead letters, through outages and refusals."""

from __future__ import annotations

import base64
import json
import pickle
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from google.api_core.exceptions import Forbidden, NotFound
from google.cloud import bigquery
from hypothesis import example, given
from hypothesis import strategies as st

from tests.bigquery_servers import (
    PROJECT,
    StrictBigQuery,
    failure,
    local_bigquery,
    refusal,
    set_faults,
)
from transforms import bigquery_tables
from transforms.bigquery_insert import InsertError, InsertPolicy, Target, insert, shared_client
from transforms.bigquery_rows import TableRef, dead_letter_row, to_row
from transforms.bigquery_write import WriteDeadLetters, WriteSignins, request_bytes
from transforms.pubsub_message import DEAD_LETTERS, MessageExtractingFn
from transforms.signin_event import SigninEvent, encode

POLICY = InsertPolicy(attempts=4, call_seconds=5, first_pause_seconds=0.01, longest_pause_seconds=0.02)
TABLE = TableRef(PROJECT, "user_signin", "signins")
LETTERS = TableRef(PROJECT, "user_signin", "dead_letters")
DATE = "2024-01-02T03:04:05.000006Z"


def event(number: int) -> SigninEvent:
    return SigninEvent(f"user-{number}", DATE, f"id-{number}", {"n": str(number)})


def rows_of(count: int) -> list[dict[str, Any]]:
    return [to_row(event(number), DATE) for number in range(count)]


class Result(NamedTuple):
    letters: list[dict[str, Any]]
    counters: Counter[str]


def write(
    rows: list[dict[str, Any]], url: str, table: TableRef = TABLE, policy: InsertPolicy = POLICY
) -> Result:
    """Runs WriteSignins as a pipeline of one bundle; the dead letters go by way of a list."""
    _collected.clear()
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        written = (
            pipeline
            | beam.Create(rows, reshuffle=False)
            | WriteSignins(table, emulator_host=url, policy=policy, pipeline_version="1.2", job_id="job-9")
        )
        _ = written[DEAD_LETTERS] | beam.Map(_collect)
    counters: Counter[str] = Counter()
    for counter in pipeline.result.metrics().query()["counters"]:
        counters[counter.key.metric.name] += counter.committed
    return Result(list(_collected), counters)


_collected: list[dict[str, Any]] = []


def _collect(row: dict[str, Any]) -> None:
    _collected.append(row)


@pytest.fixture
def strict() -> Iterator[StrictBigQuery]:
    with StrictBigQuery() as server:
        yield server


def insert_strictly(strict: StrictBigQuery, rows: list[dict[str, Any]], policy: InsertPolicy = POLICY) -> Any:
    """Calls `insert`; returns the refusals and the number of retries."""
    retries: list[None] = []
    client = bigquery_tables.client(PROJECT, strict.url)
    try:
        refusals = insert(Target(client, TABLE), rows, policy, lambda: retries.append(None))
    finally:
        client.close()
    return refusals, len(retries)


class Local(NamedTuple):
    url: str
    client: Any

    def rows(self, table: TableRef) -> list[dict[str, Any]]:
        query = self.client.query(f"SELECT * FROM `{table}`")
        return [dict(row) for row in query.result(timeout=30)]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    with local_bigquery(tmp_path_factory.mktemp("bigquery")) as url:
        client = bigquery_tables.client(PROJECT, url)
        yield Local(url, client)
        client.close()


@pytest.fixture
def tables(local: Local, request: pytest.FixtureRequest) -> tuple[TableRef, TableRef]:
    """Two fresh tables, named after the test."""
    dataset = request.node.name[:200]
    tables = TableRef(PROJECT, dataset, "signins"), TableRef(PROJECT, dataset, "dead_letters")
    bigquery_tables.ensure_tables(local.client, *tables)
    return tables


def test_messages_become_rows_and_dead_letters_in_their_tables(
    local: Local, tables: tuple[TableRef, TableRef]
):
    table, letters = tables
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        extracted = (
            pipeline
            | beam.Create(
                [encode(event(1)), b"\x00\xff", b'{"userid":"u","date":"2017-10-17T20:57:17.338320"}']
            )
            | beam.ParDo(MessageExtractingFn(job_id="job-9")).with_outputs(DEAD_LETTERS, main="rows")
        )
        written = extracted.rows | WriteSignins(table, emulator_host=local.url, policy=POLICY)
        (
            (extracted[DEAD_LETTERS], written[DEAD_LETTERS])
            | beam.Flatten()
            | WriteDeadLetters(letters, emulator_host=local.url, policy=POLICY)
        )
    first, second = sorted(local.rows(table), key=lambda row: row["userid"])
    assert first["userid"] == "u"
    assert first["date"] == datetime(2017, 10, 17, 20, 57, 17, 338320, tzinfo=UTC)
    assert (first["event_id"], first["published_at"], first["attributes"]) == (None, None, [])
    assert second["date"] == datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert (second["event_id"], second["attributes"]) == ("id-1", [{"key": "n", "value": "1"}])
    (letter,) = local.rows(letters)
    assert (letter["reason"], letter["payload"], letter["job_id"]) == ("invalid_utf8", b"\x00\xff", "job-9")


def test_a_table_with_the_article_s_two_columns_gets_those_two(local: Local):
    table = TableRef(PROJECT, "article", "signins")
    local.client.create_dataset("article")
    schema = [bigquery.SchemaField("userid", "STRING"), bigquery.SchemaField("date", "TIMESTAMP")]
    local.client.create_table(bigquery.Table(str(table), schema))
    assert write(rows_of(2), local.url, table).counters == {"rows_written": 2}
    assert sorted(row["userid"] for row in local.rows(table)) == ["user-0", "user-1"]


def test_an_outage_that_ends_costs_retries_and_nothing_else(local: Local, tables: tuple[TableRef, TableRef]):
    set_faults(local.url, {"method": "insertAll", "code": "503", "times": 2})
    result = write(rows_of(10), local.url, tables[0])
    assert result.counters == {"rows_written": 10, "insert_retries": 2}
    assert sorted(row["event_id"] for row in local.rows(tables[0])) == [f"id-{n}" for n in range(10)]


def test_a_lost_answer_gives_duplicates_of_equal_event_id_and_loses_nothing(
    local: Local, tables: tuple[TableRef, TableRef]
):
    set_faults(local.url, {"method": "insertAll", "code": "502", "times": 1, "after": True})
    write(rows_of(3), local.url, tables[0])
    assert Counter(row["event_id"] for row in local.rows(tables[0])) == {"id-0": 2, "id-1": 2, "id-2": 2}


def test_an_outage_without_end_fails_the_bundle_after_a_bounded_number_of_calls(strict: StrictBigQuery):
    strict.script = [failure(503)] * 100
    with pytest.raises(
        Exception, match=r"3 rows were not taken by signin-local\.user_signin\.signins in 4 calls"
    ):
        write(rows_of(3), strict.url)
    assert len(strict.requests) == POLICY.attempts
    assert strict.taken == []


def test_a_refused_row_becomes_a_dead_letter_and_its_neighbours_are_written(strict: StrictBigQuery):
    strict.script = [
        (200, {"insertErrors": [refusal(1, "invalid", message="out of range", location="date")]})
    ]
    letters, counters = write(rows_of(3), strict.url)
    assert counters == {"rows_written": 2, "rows_refused": 1}
    assert [row["userid"] for row in strict.taken] == ["user-0", "user-2"]
    (letter,) = letters
    assert base64.b64decode(letter["payload"]) == encode(event(1))
    assert (letter["stage"], letter["reason"], letter["detail"]) == (
        "write",
        "row_refused",
        "invalid date: out of range",
    )
    assert (letter["event_id"], letter["publish_time"]) == ("id-1", DATE)
    assert (letter["pipeline_version"], letter["job_id"]) == ("1.2", "job-9")


def test_a_row_refused_by_the_article_s_table_keeps_what_that_table_has_no_column_for():
    with StrictBigQuery(columns=["userid", "date"]) as strict:
        strict.script = [(200, {"insertErrors": [refusal(0, "invalid")]})]
        (letter,) = write(rows_of(1), strict.url).letters
    assert base64.b64decode(letter["payload"]) == encode(event(0))
    assert letter["event_id"] == "id-0"


def test_refusals_in_the_middle_of_a_bundle_come_out_as_well(strict: StrictBigQuery):
    strict.script = [(200, {"insertErrors": [refusal(0, "invalid")]})] * 4
    letters, counters = write(rows_of(7), strict.url, policy=replace(POLICY, max_rows=2))
    assert [len(rows) for rows in strict.requests] == [2, 2, 2, 1]
    assert [letter["event_id"] for letter in letters] == ["id-0", "id-2", "id-4", "id-6"]
    assert counters == {"rows_written": 3, "rows_refused": 4}


def test_refusals_of_a_request_that_was_full_in_bytes_come_out_as_well(strict: StrictBigQuery):
    strict.script = [(200, {"insertErrors": [refusal(0, "invalid")]})] * 2
    letters, _ = write(rows_of(2), strict.url, policy=replace(POLICY, max_bytes=1))
    assert [letter["event_id"] for letter in letters] == ["id-0", "id-1"]


def test_rows_that_were_stopped_by_a_neighbour_are_sent_again_without_it(strict: StrictBigQuery):
    strict.script = [
        (200, {"insertErrors": [refusal(0, "stopped"), refusal(1, "invalid"), refusal(2, "stopped")]}),
        (200, {"insertErrors": [refusal(1, "backendError")]}),
    ]
    refusals, retries = insert_strictly(strict, rows_of(3))
    assert [refused.row["userid"] for refused in refusals] == ["user-1"]
    assert [[row["userid"] for row in rows] for rows in strict.requests[1:]] == [
        ["user-0", "user-2"],
        ["user-2"],
    ]
    assert sorted(row["userid"] for row in strict.taken) == ["user-0", "user-2"]
    assert retries == 2


def test_rows_that_stay_stopped_fail_the_bundle(strict: StrictBigQuery):
    strict.script = [(200, {"insertErrors": [refusal(0, "stopped")]})] * 100
    with pytest.raises(InsertError, match="put off by BigQuery"):
        insert_strictly(strict, rows_of(1))
    assert len(strict.requests) == POLICY.attempts


@pytest.mark.parametrize(
    "trouble",
    [
        failure(429),
        failure(500),
        failure(502),
        failure(503),
        failure(504),
        failure(403, "rateLimitExceeded"),
        failure(400, "backendError"),
        (0, {}),
    ],
    ids=str,
)
def test_a_transient_failure_is_tried_again(strict: StrictBigQuery, trouble: Any):
    strict.script = [trouble, trouble]
    assert insert_strictly(strict, rows_of(2)) == ([], 2)
    assert strict.taken == rows_of(2)


def test_a_call_without_an_answer_ends_at_its_deadline_and_is_tried_again(strict: StrictBigQuery):
    answered = threading.Event()

    def stall(rows: list[dict[str, Any]]) -> Any:
        answered.wait(10)
        return failure(503)

    strict.script = [stall]
    assert insert_strictly(strict, rows_of(1), replace(POLICY, call_seconds=0.2)) == ([], 1)
    answered.set()
    assert strict.taken == rows_of(1)


@pytest.mark.parametrize(
    ("answer", "expected"), [(failure(404), NotFound), (failure(403, "accessDenied"), Forbidden)]
)
def test_what_is_wrong_with_the_table_is_told_at_once(strict: StrictBigQuery, answer: Any, expected: Any):
    strict.script = [answer]
    with pytest.raises(expected):
        insert_strictly(strict, rows_of(1))
    assert len(strict.requests) == 1


def test_a_request_that_is_too_large_is_halved_until_the_one_row_is_found(strict: StrictBigQuery):
    def limit(rows: list[dict[str, Any]]) -> Any:
        return failure(413) if any(row["userid"] == "user-3" for row in rows) else (200, {})

    strict.script = [limit] * 100
    refusals, _ = insert_strictly(strict, rows_of(8))
    assert [refused.row["userid"] for refused in refusals] == ["user-3"]
    assert len(strict.taken) == 7


def test_a_refusal_is_kept_when_the_rest_is_too_large(strict: StrictBigQuery):
    stopped = [refusal(index, "stopped") for index in (1, 2)]
    strict.script = [(200, {"insertErrors": [refusal(0, "invalid"), *stopped]}), failure(413)]
    refusals, _ = insert_strictly(strict, rows_of(3))
    assert [refused.row["userid"] for refused in refusals] == ["user-0"]
    assert [row["userid"] for row in strict.taken] == ["user-1", "user-2"]


def test_requests_stay_below_the_limit_in_bytes_whatever_the_text(strict: StrictBigQuery):
    long = [replace(event(n), attributes={"a": "é😀\x7f\u0000" * 256}) for n in range(60)]
    rows = [to_row(one) for one in long]
    policy = replace(POLICY, max_bytes=100_000)
    assert write(rows, strict.url, policy=policy).counters["rows_written"] == 60
    assert len(strict.requests) > 1
    assert max(strict.sizes) <= 100_000
    assert strict.taken == rows


@given(st.dictionaries(st.text(max_size=9), st.text(st.characters(exclude_categories=("Cs",)), max_size=99)))
@example({"x": "\x7f" * 1000})
@example({"x": "é€😀\x00" * 1000})
def test_the_size_of_a_row_is_never_underestimated(row: dict[str, str]):
    assert request_bytes(row) >= len(json.dumps({"json": row, "insertId": None})) + 2


def test_client_and_columns_are_made_once_for_all_bundles(strict: StrictBigQuery):
    for _ in range(3):
        write(rows_of(1), strict.url)
    assert strict.table_reads == 1
    assert shared_client(PROJECT, strict.url) is shared_client(PROJECT, strict.url)


def test_a_table_without_a_needed_column_fails_the_bundle_and_names_it():
    with StrictBigQuery(columns=["userid", "when"]) as strict:
        with pytest.raises(Exception, match=r"signin-local\.user_signin\.signins has no column date"):
            write(rows_of(1), strict.url)
        assert strict.requests == []


def test_a_refused_dead_letter_fails_the_bundle(strict: StrictBigQuery):
    strict.script = [(200, {"insertErrors": [refusal(0, "invalid")]})]
    letter = dead_letter_row(stage="decode", reason="invalid_json", detail="no", payload=b"x")
    pipeline = beam.Pipeline(runner=FnApiRunner())
    _ = (
        pipeline
        | beam.Create([letter], reshuffle=False)
        | WriteDeadLetters(LETTERS, emulator_host=strict.url, policy=POLICY)
    )
    with pytest.raises(Exception, match="1 dead letters were refused, the first: invalid"):
        pipeline.run()


def test_the_largest_dead_letter_fits_into_a_request(strict: StrictBigQuery):
    attributes = {f"{n:03}" + "é" * 125: "\u0000" * 1024 for n in range(100)}  # the limits of Pub/Sub
    letter = dead_letter_row(
        stage="decode",
        reason="invalid_json",
        detail="é" * 9999,
        payload=b"\xff" * 10_000_000,
        attributes=attributes,
    )
    assert insert_strictly(strict, [letter]) == ([], 0)
    assert request_bytes(letter) < InsertPolicy().max_bytes


def test_the_steps_pickle():
    for step in (WriteSignins(TABLE, job_id="j"), WriteDeadLetters(LETTERS)):
        assert pickle.loads(pickle.dumps(step._write))._table in (TABLE, LETTERS)


@pytest.mark.parametrize("failures", range(1, 12))
def test_the_pause_grows_and_is_bounded(failures: int):
    policy = InsertPolicy()
    longest = min(policy.first_pause_seconds * 2 ** (failures - 1), policy.longest_pause_seconds)
    assert longest / 2 <= policy.pause_seconds(failures) <= longest
