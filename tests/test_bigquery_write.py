"""Rows reach BigQuery or become dead letters, whatever BigQuery answers: both of our own write methods."""

from __future__ import annotations

import base64
import pickle
import threading
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage as BeamMessage
from google.rpc import code_pb2

from tests.append_rows_server import AppendRowsServer
from tests.bigquery_servers import StrictBigQuery, failure
from tests.write_servers import (
    LETTERS,
    METHODS,
    POLICY,
    TABLE,
    Servers,
    age_columns,
    event,
    ids,
    messages_of,
    servers_of_each_method,  # noqa: F401 - a fixture
)
from transforms.bigquery_rows import SIGNIN_SCHEMA
from transforms.bigquery_write import WriteDeadLetters
from transforms.signin_event import encode

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


def test_the_steps_pickle():
    for method in METHODS:
        write = WriteDeadLetters(LETTERS, method=method)._write
        assert pickle.loads(pickle.dumps(write))._destination == write._destination
