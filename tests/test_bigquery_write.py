"""Rows reach BigQuery or become dead letters, whatever BigQuery answers: both of our own write methods."""

from __future__ import annotations

import base64
import pickle
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import apache_beam as beam
import grpc
import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage as BeamMessage
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from google.rpc import code_pb2
from hypothesis import given
from hypothesis import strategies as st

from tests.append_rows_server import AppendRowsServer
from tests.bigquery_servers import PROJECT, StrictBigQuery, failure, refusal
from transforms import bigquery_writer
from transforms.bigquery_delivery import WritePolicy, requests
from transforms.bigquery_rows import DEAD_LETTER_SCHEMA, SIGNIN_SCHEMA, TableRef, dead_letter_row, is_cut
from transforms.bigquery_write import WriteDeadLetters, WriteSignins
from transforms.signin_event import SigninEvent, encode

POLICY = WritePolicy(attempts=4, call_seconds=5, first_pause_seconds=0.01, longest_pause_seconds=0.02)
TABLE = TableRef(PROJECT, "user_signin", "signins")
LETTERS = TableRef(PROJECT, "user_signin", "dead_letters")
DATE = "2024-01-02T03:04:05.000006Z"
METHODS = ("INSERT_ALL", "STORAGE_WRITE")


def event(number: int) -> SigninEvent:
    return SigninEvent(f"user-{number}", DATE, f"id-{number}", {"n": str(number)})


def messages_of(count: int) -> list[bytes]:
    return [encode(event(number)) for number in range(count)]


class Result(NamedTuple):
    letters: list[dict[str, Any]]
    counters: Counter[str]
    distributions: dict[str, Any]


_collected: list[dict[str, Any]] = []


def _collect(row: dict[str, Any]) -> None:
    _collected.append(row)


def run_pipeline(elements: list[Any], step: Any) -> Result:
    """Runs a step as a pipeline of one bundle; its output goes by way of a list."""
    _collected.clear()
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        letters = pipeline | beam.Create(elements, reshuffle=False) | step
        _ = letters | beam.Map(_collect)
    found = pipeline.result.metrics().query()
    counters: Counter[str] = Counter()
    for counter in found["counters"]:
        counters[counter.key.metric.name] += counter.committed
    distributions = {d.key.metric.name: d.committed for d in found["distributions"]}
    return Result(list(_collected), counters, distributions)


class Servers:
    """BigQuery's REST API and its Storage Write API, with the same words for what both can do."""

    def __init__(self, method: str, rest: StrictBigQuery, append: AppendRowsServer) -> None:
        self.method, self.rest, self.append = method, rest, append
        self.table = append.create(TABLE, SIGNIN_SCHEMA)
        self.letters = append.create(LETTERS, DEAD_LETTER_SCHEMA)

    def write(self, messages: list[Any], policy: WritePolicy = POLICY) -> Result:
        step = WriteSignins(
            TABLE,
            method=self.method,
            emulator_host=self.rest.url,
            storage_emulator_host=self.append.address,
            policy=policy,
            pipeline_version="1.2",
            job_id="job-9",
        )
        return run_pipeline(messages, step)

    def write_letters(self, letters: list[dict[str, Any]], topic: Any = None) -> Counter[str]:
        step = WriteDeadLetters(
            LETTERS,
            method=self.method,
            emulator_host=self.rest.url,
            storage_emulator_host=self.append.address,
            policy=POLICY,
            topic=topic,
        )
        return run_pipeline(letters, step).counters

    def refuse(self, *userids: str) -> None:
        """Refuses the rows of these users for good."""
        self.append.refuse = lambda row: "bad user" if row.get("userid") in userids else ""

        def judge(rows: list[dict[str, Any]]) -> Any:
            bad = [index for index, row in enumerate(rows) if row.get("userid") in userids]
            errors = [refusal(index, "invalid", message="bad user") for index in bad]
            return 200, {"insertErrors": errors}

        self.rest.script = [judge] * 100

    def fail(self, *codes: tuple[Any, Any]) -> None:
        """Each next call fails: an answer of REST, or a step of the AppendRows server."""
        self.rest.script = [answer for answer, _ in codes]
        self.append.script.extend(step for _, step in codes)

    def taken(self) -> list[dict[str, Any]]:
        return self.rest.taken if self.method == "INSERT_ALL" else self.table.rows

    def taken_letters(self) -> list[dict[str, Any]]:
        return self.rest.taken if self.method == "INSERT_ALL" else self.letters.rows

    def requests(self) -> list[int]:
        return (
            [len(rows) for rows in self.rest.requests]
            if self.method == "INSERT_ALL"
            else self.append.requests
        )


@pytest.fixture(params=METHODS)
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    with StrictBigQuery() as rest, AppendRowsServer() as append:
        servers = Servers(request.param, rest, append)
        yield servers
        assert append.faults == []


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(row["event_id"] for row in rows)


TRANSIENT = {
    "503": ((503, {}), grpc.StatusCode.UNAVAILABLE),
    "429": ((429, {}), grpc.StatusCode.RESOURCE_EXHAUSTED),
    "500": ((500, {}), code_pb2.INTERNAL),
    "502": ((502, {}), code_pb2.ABORTED),
    "504": ((504, {}), grpc.StatusCode.DEADLINE_EXCEEDED),
    "quota": (failure(403, "quotaExceeded"), code_pb2.RESOURCE_EXHAUSTED),
    "rate": (failure(403, "rateLimitExceeded"), grpc.StatusCode.ABORTED),
    "backend": (failure(400, "backendError"), grpc.StatusCode.INTERNAL),
    "reset": ((0, {}), grpc.StatusCode.UNKNOWN),
}


@pytest.mark.parametrize("trouble", list(TRANSIENT))
def test_a_transient_failure_costs_retries_and_nothing_else(servers: Servers, trouble: str):
    servers.fail(*[TRANSIENT[trouble]] * 2)
    letters, counters, _ = servers.write(messages_of(10))
    assert letters == []
    assert counters["rows_written"] == 10
    assert counters["write_retries"] == 2
    assert ids(servers.taken()) == ids([{"event_id": f"id-{n}"} for n in range(10)])


def test_an_outage_without_end_fails_the_bundle_after_a_bounded_number_of_calls(servers: Servers):
    servers.fail(*[TRANSIENT["503"]] * 100)
    with pytest.raises(
        Exception, match=r"3 rows were not taken by signin-local\.user_signin\.signins in 4 calls"
    ):
        servers.write(messages_of(3))
    left = servers.rest.script if servers.method == "INSERT_ALL" else servers.append.script
    assert 100 - len(left) == POLICY.attempts
    assert servers.taken() == []


def test_a_lost_answer_gives_duplicates_of_equal_event_id_and_loses_nothing(servers: Servers):
    def lost(rows: list[dict[str, Any]]) -> Any:
        servers.rest.taken += rows
        return failure(502)

    servers.fail((lost, "lost"))
    servers.write(messages_of(3))
    assert Counter(ids(servers.taken())) == {"id-0": 2, "id-1": 2, "id-2": 2}


def test_a_call_without_an_answer_ends_at_its_deadline_and_is_tried_again(servers: Servers):
    answered = threading.Event()

    def stall(rows: list[dict[str, Any]]) -> Any:
        answered.wait(10)
        return failure(503)

    servers.fail((stall, "silent"))
    result = servers.write(messages_of(2), replace(POLICY, call_seconds=1.5))
    answered.set()
    assert result.counters["write_retries"] == 1
    assert ids(servers.taken()) == ["id-0", "id-1"]


def test_refused_rows_become_dead_letters_and_their_neighbours_are_written(servers: Servers):
    servers.refuse("user-1", "user-4")
    letters, counters, _ = servers.write(messages_of(6))
    assert ids(servers.taken()) == ["id-0", "id-2", "id-3", "id-5"]
    assert counters["rows_written"] == 4
    assert counters["rows_refused"] == counters["dead_letters_row_refused"] == 2
    assert counters["signins_parsed"] == 4
    assert [letter["event_id"] for letter in letters] == ["id-1", "id-4"]
    assert {letter["stage"] for letter in letters} == {"write"}
    assert {letter["reason"] for letter in letters} == {"row_refused"}
    assert "bad user" in letters[0]["detail"]
    assert (letters[0]["pipeline_version"], letters[0]["job_id"]) == ("1.2", "job-9")


def test_a_refused_row_s_letter_has_the_message_as_it_came(servers: Servers):
    servers.refuse("user-7")
    body = b'{ "userid":"user-7", "unknown": [1], "date":"2024-01-02T03:04:05.000006" }'
    message = BeamMessage(
        body,
        {"event_id": "id-7", "traceparent": "00-1"},
        message_id="m-7",
        publish_time=datetime(2024, 5, 6, tzinfo=UTC),
    )
    (letter,) = servers.write([message]).letters
    assert base64.b64decode(letter["payload"]) == body
    assert (letter["message_id"], letter["event_id"]) == ("m-7", "id-7")
    assert letter["publish_time"] == "2024-05-06T00:00:00.000000Z"
    assert {a["key"]: a["value"] for a in letter["attributes"]} == message.attributes


def test_bad_messages_and_bad_rows_come_out_of_one_bundle(servers: Servers):
    servers.refuse("user-2")
    letters, counters, _ = servers.write([*messages_of(4), b"\xff", b"{}"])
    assert Counter(letter["reason"] for letter in letters) == {
        "row_refused": 1,
        "invalid_utf8": 1,
        "userid_missing": 1,
    }
    assert counters["dead_letters"] == 3
    assert counters["rows_written"] == 3


@pytest.mark.parametrize(
    ("policy", "messages", "most"),
    [
        (replace(POLICY, max_rows=2), 9, 2),
        (replace(POLICY, max_bytes=250), 9, 4),
        (replace(POLICY, max_seconds=0), 600, 300),
    ],
)
def test_a_bundle_goes_in_requests_of_bounded_rows_bytes_and_time(
    servers: Servers, policy: WritePolicy, messages: int, most: int
):
    servers.refuse("user-0", "user-5")
    letters, _, _ = servers.write(messages_of(messages), policy)
    assert 1 < max(servers.requests()) <= most
    assert sorted(letter["event_id"] for letter in letters) == ["id-0", "id-5"]
    assert len(ids(servers.taken())) == len(set(ids(servers.taken()))) == messages - 2


def test_no_more_messages_are_held_than_the_bound_says_however_large_their_attributes(servers: Servers):
    attributes = {f"k{number}": "é" * 1000 for number in range(20)}
    messages = [BeamMessage(body, attributes) for body in messages_of(600)]
    letters, _, _ = servers.write(messages, replace(POLICY, max_bytes=1_000_000))
    assert letters == []
    assert len(ids(servers.taken())) == len(set(ids(servers.taken()))) == 600
    assert max(servers.requests()) <= 256  # what is decoded at once


def test_dead_letters_are_not_held_beyond_the_bound_however_large_their_attributes(servers: Servers):
    letter = LETTER | {"attributes": [{"key": "k", "value": "v" * 100_000}]}
    step = WriteDeadLetters(
        LETTERS,
        method=servers.method,
        emulator_host=servers.rest.url,
        storage_emulator_host=servers.append.address,
        policy=replace(POLICY, max_bytes=250_000),
    )._write
    step.start_bundle()
    for _ in range(10):
        step.process(letter)
    assert len(servers.taken_letters()) >= 8


def test_requests_stay_below_the_limit_in_bytes_whatever_the_text(servers: Servers):
    long = [encode(SigninEvent(f"u{n}", DATE, f"id-{n}", {"a": "é😀\x7f" * 300})) for n in range(60)]
    result = servers.write(long, replace(POLICY, max_bytes=30_000))
    assert result.counters["rows_written"] == 60
    sizes = servers.rest.sizes if servers.method == "INSERT_ALL" else servers.append.sizes
    assert len(sizes) > 1
    assert max(sizes) <= 31_000  # what surrounds the rows included
    assert {row["attributes"][0]["value"] for row in servers.taken()} == {"é😀\x7f" * 300}


def test_latency_freshness_and_bytes_are_measured(servers: Servers):
    early = datetime.now(UTC) - timedelta(seconds=10)
    late = datetime.now(UTC) - timedelta(seconds=2)
    messages = [
        BeamMessage(encode(event(n)), {}, message_id=str(n), publish_time=early if n < 5 else late)
        for n in range(10)
    ]
    _, counters, distributions = servers.write(messages)
    latency = distributions["publish_to_row_latency_ms"]
    assert latency.count == 2
    assert 2_000 <= latency.min < 10_000 <= latency.max < 60_000
    assert distributions["row_freshness_ms"].count == 1
    assert distributions["row_freshness_ms"].max == latency.max
    size = servers.rest.sizes[0] if servers.method == "INSERT_ALL" else servers.append.sizes[0]
    assert 0.5 * size < counters["bytes_written"] <= size + 10


def test_what_the_table_has_no_column_for_is_not_sent():
    with StrictBigQuery(columns=["userid", "date"]) as rest, AppendRowsServer() as append:
        for method in METHODS:
            servers = Servers(method, rest, append)
            servers.table = append.create(TABLE, SIGNIN_SCHEMA[:2])
            assert servers.write(messages_of(2)).counters["rows_written"] == 2
            assert [set(row) for row in servers.taken()] == [{"userid", "date"}] * 2


def test_a_table_that_loses_columns_under_way_gets_its_rows_without_them(servers: Servers):
    assert servers.write(messages_of(2)).counters["rows_written"] == 2
    servers.rest.columns = ["userid", "date", "event_id"]
    servers.append.create(TABLE, SIGNIN_SCHEMA[:3]).rows = servers.table.rows
    servers.append.script.append(grpc.StatusCode.UNAVAILABLE)  # a schema is looked at when a call begins
    age_columns()
    letters, counters, _ = servers.write(messages_of(4)[2:])
    assert letters == []
    assert counters["rows_written"] == 2
    assert ids(servers.taken()) == ["id-0", "id-1", "id-2", "id-3"]
    assert "attributes" not in servers.taken()[-1]


def test_a_new_column_is_filled_without_a_restart(servers: Servers):
    servers.rest.columns = ["userid", "date"]
    servers.table = servers.append.create(TABLE, SIGNIN_SCHEMA[:2])
    servers.write(messages_of(1))
    servers.rest.columns = None
    servers.table.schema[:] = SIGNIN_SCHEMA
    servers.table.has_changed = True
    quick = replace(POLICY, columns_seconds=300.0)
    servers.write(messages_of(1), quick)
    if servers.method == "INSERT_ALL":  # which has no way to tell
        age_columns(1000)
    servers.write(messages_of(1), quick)
    assert "event_id" in servers.taken()[-1]


def test_a_needed_column_of_another_type_fails_the_bundle_and_names_both_types(servers: Servers):
    servers.rest.columns = ["userid", "when"]
    with pytest.raises(Exception, match=r"signin-local\.user_signin\.signins has no column date of the type"):
        servers.write(messages_of(1))
    assert servers.taken() == []


@pytest.mark.parametrize(
    ("answer", "step", "text"),
    [
        (failure(404), grpc.StatusCode.NOT_FOUND, "(?i)not.?found|404"),
        (failure(403, "accessDenied"), grpc.StatusCode.PERMISSION_DENIED, "403|PERMISSION_DENIED"),
    ],
)
def test_what_is_wrong_with_the_table_is_told_at_once(servers: Servers, answer: Any, step: Any, text: str):
    servers.fail((answer, step))
    with pytest.raises(Exception, match=text):
        servers.write(messages_of(1))
    assert servers.taken() == []
    assert servers.write(messages_of(1)).counters["rows_written"] == 1  # when it is mended


def test_connections_and_columns_are_kept_from_bundle_to_bundle(servers: Servers):
    for _ in range(3):
        servers.write(messages_of(1))
    assert servers.rest.table_reads == 1
    assert servers.append.connections == (servers.method == "STORAGE_WRITE")


LETTER = dead_letter_row(
    stage="decode",
    reason="invalid_json",
    detail="no",
    payload=b"x",
    attributes={"k": "v"},
    message_id="m-1",
    job_id="job-9",
)


def test_dead_letters_are_written_with_their_bytes(servers: Servers):
    assert servers.write_letters([LETTER] * 3) == {"dead_letters_written": 3}
    payload = servers.taken_letters()[0]["payload"]
    assert (base64.b64decode(payload) if isinstance(payload, str) else payload) == b"x"


def test_a_refused_dead_letter_is_written_without_what_it_need_not_have(servers: Servers):
    servers.append.refuse = lambda row: "bad" if "message_id" in row else ""

    def judge(rows: list[dict[str, Any]]) -> Any:
        bad = [index for index, row in enumerate(rows) if "message_id" in row]
        return 200, {"insertErrors": [refusal(index, "invalid") for index in bad]}

    servers.rest.script = [judge] * 9
    assert servers.write_letters([LETTER, LETTER])["dead_letters_written"] == 2
    kept = servers.taken_letters()[0]
    assert (kept["stage"], kept["reason"]) == ("decode", "invalid_json")
    assert "refused as it was" in kept["detail"]


def test_a_dead_letter_that_is_refused_for_good_ends_there_counted_and_logged(
    servers: Servers, caplog: pytest.LogCaptureFixture
):
    servers.append.refuse = lambda row: "bad" if row["reason"] == "invalid_json" else ""

    def judge(rows: list[dict[str, Any]]) -> Any:
        bad = [index for index, row in enumerate(rows) if row["reason"] == "invalid_json"]
        return 200, {"insertErrors": [refusal(index, "invalid") for index in bad]}

    servers.rest.script = [judge] * 9
    counters = servers.write_letters([LETTER, LETTER | {"reason": "empty_body"}])
    assert counters["dead_letters_refused"] == 1
    assert counters["dead_letters_written"] == 1
    assert "message m-1, is refused by signin-local.user_signin.dead_letters" in caplog.text


def test_the_largest_dead_letter_fits_into_a_request(servers: Servers):
    attributes = {f"{n:03}" + "é" * 125: "\u0000" * 1024 for n in range(100)}  # the limits of Pub/Sub
    letter = dead_letter_row(
        stage="decode",
        reason="invalid_json",
        detail="é" * 9999,
        payload=b"\xff" * 10_000_000,
        attributes=attributes,
    )
    assert is_cut(letter["detail"])
    assert servers.write_letters([letter]) == {"dead_letters_written": 1}


def age_columns(seconds: float = 10.0) -> None:
    """Lets time pass since the columns were read, or could not be."""
    for writer in bigquery_writer._writers.values():
        writer._read_at -= seconds
        writer._failed_at -= seconds


@pytest.mark.parametrize("failures", range(1, 12))
def test_the_pause_grows_and_is_bounded(failures: int):
    policy = WritePolicy()
    longest = min(policy.first_pause_seconds * 2 ** (failures - 1), policy.longest_pause_seconds)
    assert longest / 2 <= policy.pause_seconds(failures) <= longest


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 7), st.integers(1, 120))
def test_requests_cover_all_rows_once_and_stay_within_the_policy(sizes, max_rows, max_bytes):
    parts = list(requests(sizes, WritePolicy(max_rows=max_rows, max_bytes=max_bytes)))
    assert [index for start, stop in parts for index in range(start, stop)] == list(range(len(sizes)))
    for start, stop in parts:
        assert stop - start <= max_rows
        assert sum(sizes[start:stop]) <= max_bytes or stop - start == 1


def test_the_steps_pickle():
    for method in METHODS:
        write = WriteDeadLetters(LETTERS, method=method)._write
        assert pickle.loads(pickle.dumps(write))._destination == write._destination
