"""The steps that write to BigQuery, run as pipelines against its two APIs with a fault switch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from tests.append_rows_server import AppendRowsServer
from tests.bigquery_servers import PROJECT, StrictBigQuery, refusal
from transforms import bigquery_writer
from transforms.bigquery_delivery import WritePolicy
from transforms.bigquery_rows import DEAD_LETTER_SCHEMA, SIGNIN_SCHEMA, TableRef
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


@contextmanager
def write_servers(method: str) -> Iterator[Servers]:
    """Both servers; afterwards the client of AppendRows has kept to the protocol."""
    with StrictBigQuery() as rest, AppendRowsServer() as append:
        yield Servers(method, rest, append)
        assert append.faults == []


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(row["event_id"] for row in rows)


def age_columns(seconds: float = 10.0) -> None:
    """Lets time pass since the columns were read, or could not be."""
    for writer in bigquery_writer._writers.values():
        writer._read_at -= seconds
        writer._failed_at -= seconds


@pytest.fixture(name="servers", params=METHODS)
def servers_of_each_method(request: pytest.FixtureRequest) -> Iterator[Servers]:
    with write_servers(request.param) as servers:
        yield servers
