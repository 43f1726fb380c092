"""What a fault of BigQuery does not delay, and a drain that begins under one: both of our own write methods.

The servers hold what the tests say until it is let go: the order of events is seen, and no time measured.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from pipeline.local_engine.batch_source import ReadLeasedMessages
from pipeline.local_engine.engine import Limits
from pipeline.local_engine.runs import GraphRuns
from pipeline.options import parse
from pipeline.user_signin import build
from tests.append_rows_server import AppendRowsServer
from tests.bigquery_servers import PROJECT, StrictBigQuery, failure, refusal
from tests.engine_place import Place, until
from tests.pubsub_process import PubsubProcess
from tests.write_servers import LETTERS, METHODS, TABLE, event, ids
from transforms.bigquery_rows import DEAD_LETTER_SCHEMA, SIGNIN_SCHEMA
from transforms.signin_event import encode

BAD = "id-0"
FAULTS = 3  # calls that fail until the fault ends by itself


class Job:
    """A job that is not started, and the servers that it writes to."""

    def __init__(self, method: str, place: Place, rest: StrictBigQuery, append: AppendRowsServer) -> None:
        self.method, self.place, self.rest, self.append = method, place, rest, append
        self._signins = append.create(TABLE, SIGNIN_SCHEMA)
        self._letters = append.create(LETTERS, DEAD_LETTER_SCHEMA)
        self.options = parse(
            [
                f"--project={PROJECT}",
                f"--write_method={method}",
                f"--output_table={TABLE}",
                f"--dead_letter_table={LETTERS}",
            ]
        )

    def start(self) -> None:
        def graph(pipeline: Any) -> None:
            build(pipeline, self.options, ReadLeasedMessages(), self.rest.url)

        self.place.start(GraphRuns(graph, self.options), limits=Limits(lanes=2))

    def publish(self, *numbers: int) -> None:
        self.place.publish(*[encode(event(number)).decode() for number in numbers])

    def rows(self) -> list[str]:
        rows = self.rest.taken if self.method == "INSERT_ALL" else self._signins.rows
        return ids([row for row in list(rows) if "payload" not in row])

    def letters(self) -> list[str]:
        rows = self.rest.taken if self.method == "INSERT_ALL" else self._letters.rows
        return ids([row for row in list(rows) if "payload" in row])

    def refuse(self, hold: Callable[[], None]) -> None:
        """Refuses the row of `BAD`, and holds its dead letter's request."""

        def judge(row: dict[str, Any]) -> str:
            if "payload" in row:
                hold()
                return ""
            return "bad user" if row["event_id"] == BAD else ""

        def judge_all(rows: list[dict[str, Any]]) -> Any:
            reasons = {index: reason for index, row in enumerate(rows) if (reason := judge(row))}
            return 200, {
                "insertErrors": [refusal(index, "invalid", message=reasons[index]) for index in reasons]
            }

        self.append.refuse = judge
        self.rest.script = [judge_all] * 100

    def fail(self) -> None:
        """The next `FAULTS` calls fail."""
        self.append.script.extend([grpc.StatusCode.UNAVAILABLE] * FAULTS)
        self.rest.script = [failure(503)] * FAULTS

    def faults_left(self) -> int:
        return len(self.rest.script if self.method == "INSERT_ALL" else self.append.script)


@pytest.fixture(params=METHODS)
def job(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    with contextlib.ExitStack() as stack:
        rest = stack.enter_context(StrictBigQuery())
        append = stack.enter_context(AppendRowsServer())
        pubsub = stack.enter_context(PubsubProcess(tmp_path))
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", append.address)
        place = Place(pubsub.address)
        stack.callback(place.channel.close)
        stack.callback(place.drain)
        yield Job(request.param, place, rest, append)
    assert append.faults == []


def names(*numbers: int) -> list[str]:
    return sorted(f"id-{number}" for number in numbers)


def test_rows_beside_a_refused_one_and_those_after_it_do_not_wait_for_its_dead_letter(job: Job):
    is_held, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        is_held.set()
        assert may_go.wait(25)

    job.refuse(hold)
    job.start()
    try:
        job.publish(*range(1, 20), 0)
        assert is_held.wait(15)
        until(lambda: job.rows() == names(*range(1, 20)))
        job.publish(*range(20, 40))
        until(lambda: job.rows() == names(*range(1, 40)))
        assert job.letters() == []
    finally:
        may_go.set()
    until(lambda: job.letters() == [BAD])
    job.place.drain()
    assert job.rows() == names(*range(1, 40))
    assert job.place.waiting() == []


def test_a_drain_under_a_fault_ends_with_all_rows_in_the_table(job: Job):
    job.fail()
    job.publish(*range(20))
    job.start()
    until(lambda: job.faults_left() < FAULTS)
    assert job.faults_left()
    job.place.drain()
    assert job.faults_left() == 0
    assert job.rows() == names(*range(20))
    assert job.place.waiting() == []
    assert job.place.counter("write_retries") == FAULTS
