"""The law of `test_message_law.py` behind the servers: rows and dead letters together are the messages.

Both of our own write methods take the same messages through the steps that production runs.
"""

from __future__ import annotations

import base64
import json
import pickle
import random
import zlib
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from tests import column_rules
from tests.any_message import RawMessage, messages
from tests.append_rows_server import AppendRowsServer
from tests.bigquery_servers import StrictBigQuery, refusal
from tests.write_servers import LETTERS, METHODS, TABLE
from transforms.bigquery_delivery import WritePolicy
from transforms.bigquery_rows import DEAD_LETTER_SCHEMA, SIGNIN_SCHEMA
from transforms.bigquery_write import WriteDeadLetters, WriteSignins
from transforms.pubsub_message import DeadLetter, Extractor

ORIGIN = {"pipeline_version": "1", "job_id": "job"}
# Small enough that bundles have several requests, of which some are full and some are not.
POLICY = WritePolicy(max_rows=700, max_bytes=200_000, first_pause_seconds=0.01)
TIMES = {column["name"] for column in [*SIGNIN_SCHEMA, *DEAD_LETTER_SCHEMA] if column["type"] == "TIMESTAMP"}
# The elements of the bundle that is under way: the embedded worker runs in this process.
_bundle: list[Any] = []


class AnyMessageCoder(beam.coders.Coder):
    """Beam samples sizes by encoding, and the class of raw messages cannot be pickled by name."""

    def encode(self, value: Any) -> bytes:
        return pickle.dumps(value.SerializeToString() if type(value) is RawMessage else value)

    def decode(self, encoded: bytes) -> Any:
        raise AssertionError("the source and the writing step are one stage")


class AnyMessage:
    """The element type of messages of all kinds."""


beam.coders.registry.register_coder(AnyMessage, AnyMessageCoder)


class SourceFn(beam.DoFn):
    def process(self, _: bytes) -> Iterator[Any]:
        yield from _bundle


def is_refused(row: dict[str, Any]) -> bool:
    """Whether the servers refuse the row though nothing is wrong with it: every seventh sign-in or so."""
    return "userid" in row and zlib.crc32(row["userid"].encode()) % 7 == 0


def judge_rows(rows: list[dict[str, Any]]) -> Any:
    """The answer of insertAll: it refuses what BigQuery would, and what `is_refused` names."""
    errors = []
    for index, row in enumerate(rows):
        schema = DEAD_LETTER_SCHEMA if "payload" in row else SIGNIN_SCHEMA
        if complaints := column_rules.complaints(row, schema):
            errors.append(refusal(index, "invalid", message=str(complaints)))
        elif is_refused(row):
            errors.append(refusal(index, "invalid", message="bad user"))
    return 200, {"insertErrors": errors}


def expected_of(found: list[Any]) -> Counter[str]:
    """What stands in the tables when each message was read by itself, as `plain` writes it."""
    extractor = Extractor(**ORIGIN)
    outcomes: Counter[str] = Counter()
    for message in found:
        outcome = extractor.extract(message)
        if type(outcome) is not DeadLetter and is_refused(outcome):
            outcome = extractor.refuse(message, "write", "row_refused", "", outcome)
        if type(outcome) is DeadLetter:
            data = message if type(message) is bytes else bytes(message.data)
            assert base64.b64decode(outcome["payload"]) == data
        outcomes[plain(outcome)] += 1
    return outcomes


def plain(row: dict[str, Any]) -> str:
    """A row of either server as text: without NULLs, times as microseconds, bytes as base64."""
    kept = {name: value for name, value in row.items() if value not in (None, [])}
    for name in TIMES & set(kept):
        time = kept[name]
        kept[name] = (time if isinstance(time, datetime) else datetime.fromisoformat(time)).isoformat()
    for record in kept.get("attributes", ()):
        assert set(record) <= {"key", "value"}
    if "payload" in kept:
        del kept["failed_at"]
        if isinstance(kept["payload"], bytes):
            kept["payload"] = base64.b64encode(kept["payload"]).decode()
        if kept["reason"] == "row_refused":
            kept["detail"] = ""  # in the words of the server
    return json.dumps(kept, sort_keys=True)


@pytest.mark.parametrize("method", METHODS)
def test_each_of_twenty_thousand_messages_is_one_row_or_one_dead_letter_in_the_tables(method: str):
    chance = random.Random(11)
    every = list(messages(2026, 20_000))
    with StrictBigQuery() as rest, AppendRowsServer() as append:
        rest.script = [judge_rows] * 10_000
        append.refuse = lambda row: "bad user" if is_refused(row) else ""
        signins, letters = append.create(TABLE, SIGNIN_SCHEMA), append.create(LETTERS, DEAD_LETTER_SCHEMA)
        way: Any = {
            "method": method,
            "emulator_host": rest.url,
            "storage_emulator_host": append.address,
            "policy": POLICY,
        }
        pipeline = beam.Pipeline(runner=FnApiRunner())
        source = pipeline | beam.Impulse() | beam.ParDo(SourceFn()).with_output_types(AnyMessage)
        _ = source | WriteSignins(TABLE, **way, **ORIGIN) | WriteDeadLetters(LETTERS, **way)
        proto = pipeline.to_runner_api(default_environment=pipeline.runner._default_environment)
        begin = 0
        while begin < len(every):
            size = chance.choice((1, 2, 255, 256, 257, 1_000, 4_000))
            _bundle[:] = every[begin : begin + size]
            pipeline.runner.run_via_runner_api(proto, PipelineOptions([])).wait_until_finish()
            begin += size
        taken = rest.taken if method == "INSERT_ALL" else [*signins.rows, *letters.rows]
        assert append.faults == []
    expected = expected_of(every)
    assert expected.total() == len(taken) == 20_000
    assert Counter(map(plain, taken)) == expected
    assert sum("payload" not in row for row in taken) > 2_000
    assert sum(row.get("reason") == "row_refused" for row in taken) > 200
