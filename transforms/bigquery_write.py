"""Messages to rows in BigQuery in one step: the same steps on Dataflow and on one machine.

A bundle ends only when BigQuery has acknowledged each of its rows or refused it for good, so what
the runner commits is in a table. At least once: a bundle that fails halfway comes again whole.
"""

from __future__ import annotations

import functools
import gc
import logging
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows

from transforms import write_metrics
from transforms.bigquery_delivery import WritePolicy
from transforms.bigquery_rows import DEAD_LETTER_SCHEMA, SIGNIN_SCHEMA, Row, TableRef, shortened
from transforms.bigquery_stock import StockMethod, WriteRows
from transforms.bigquery_writer import Destination, OwnMethod, shared_writer
from transforms.dead_letter_topic import Topic, came_back, shared_publisher
from transforms.pubsub_message import (
    DEAD_LETTERS,
    METRICS_NAMESPACE,
    Extractor,
    MessageExtractingFn,
    attribute_bytes,
)
from transforms.write_traces import BY_ENVIRONMENT, WriteTraces

WriteMethod = OwnMethod | StockMethod
MAX_HELD_BYTES = 32_000_000  # of messages whose rows are not acknowledged yet, before another chunk of them
# What is decoded together. Each message counts as so many bytes more, so that there are at most 256 of them.
# The clock is looked at in between.
_CHUNK_BYTES = 1_000_000
_MESSAGE_BYTES = _CHUNK_BYTES // 256
_NEVER = float("inf")

_log = logging.getLogger(__name__)


class WriteSignins(beam.PTransform):  # type: ignore[misc]
    """From messages (see `Extractor`) to rows of `table`; the output is the dead letters of all stages.

    A row that BigQuery refuses becomes a dead letter of the stage `write` with the reason `row_refused`
    and the message's own bytes. The emulators are a URL and `host:port`; empty means Google. Columns that
    the table lacks are not sent.
    """

    def __init__(
        self,
        table: TableRef,
        *,
        method: WriteMethod = "INSERT_ALL",
        emulator_host: str = "",
        storage_emulator_host: str = "",
        policy: WritePolicy | None = None,
        traces: WriteTraces = BY_ENVIRONMENT,
        pipeline_version: str = "",
        job_id: str = "",
    ) -> None:
        super().__init__()
        self._traces = traces
        self._table = table
        self._method = method
        self._emulators = emulator_host, storage_emulator_host
        self._policy = policy or WritePolicy()
        self._origin = {"pipeline_version": pipeline_version, "job_id": job_id}

    def expand(self, messages: Any) -> Any:
        method = self._method
        if method == "STORAGE_WRITE" or method == "INSERT_ALL":  # noqa: PLR1714 - so mypy follows
            destination = Destination(self._table, method, *self._emulators)
            write = WriteSigninsFn(destination, self._policy, Extractor(**self._origin), self._traces)
            return messages | "Extract and append sign-ins" >> beam.ParDo(write)
        extracted = messages | "Extract sign-ins" >> beam.ParDo(
            MessageExtractingFn(**self._origin)
        ).with_outputs(DEAD_LETTERS, main="rows")
        refused = extracted.rows | "Write rows" >> WriteRows(self._table, method, **self._origin)
        return (extracted[DEAD_LETTERS], refused) | "Gather dead letters" >> beam.Flatten()


class WriteDeadLetters(beam.PTransform):  # type: ignore[misc]
    """Appends dead letters to `table`, and publishes them to `topic` where there is one.

    A bundle's first goes at once, so that a table that takes none fails the bundle before its rows go.
    One that BigQuery refuses is sent again without all that is not required; refused once more it is
    counted and logged, and is in the topic alone.
    """

    def __init__(
        self,
        table: TableRef,
        *,
        method: OwnMethod = "INSERT_ALL",
        emulator_host: str = "",
        storage_emulator_host: str = "",
        policy: WritePolicy | None = None,
        topic: Topic | None = None,
        traces: WriteTraces = BY_ENVIRONMENT,
    ) -> None:
        super().__init__()
        destination = Destination(table, method, emulator_host, storage_emulator_host)
        self._write = _WriteDeadLettersFn(destination, policy or WritePolicy(), topic, traces)

    def expand(self, letters: Any) -> Any:
        return letters | "Append dead letters" >> beam.ParDo(self._write)


class WriteSigninsFn(beam.DoFn):  # type: ignore[misc]
    """Collects a bundle's rows into batches within the policy; the last one goes when the bundle ends.

    Messages are decoded in chunks. Each is held beside its row until that is acknowledged, so that its dead
    letter has it whole.
    """

    _room: int

    def __init__(
        self,
        destination: Destination,
        policy: WritePolicy,
        extractor: Extractor,
        traces: WriteTraces = BY_ENVIRONMENT,
    ) -> None:
        super().__init__()
        self._traces = traces
        self._destination = destination
        self._policy = policy
        self._extractor = extractor
        self._reset()

    def setup(self) -> None:
        _spare_the_collector()

    def start_bundle(self) -> None:
        self._extractor.begin()
        self._reset()

    def process(self, message: Any) -> Iterable[Row] | None:
        try:
            payload = message if type(message) is bytes else message.data
            size = len(payload)
        except Exception:  # noqa: BLE001 - no message at all, which the extractor has an answer to
            payload, size = b"", 0
        self._chunk.append(message)
        self._payloads.append(payload)
        self._room = room = self._room - size - _MESSAGE_BYTES
        return self._look() if room < 0 else None  # the same as nothing to Beam, and quicker

    def finish_bundle(self) -> Iterable[Any]:
        for letter in chain(self._extract(), self._flush()):
            yield GlobalWindows.windowed_value(letter)
        self._extractor.report()

    def write(self, rows: list[Row]) -> dict[int, str]:
        """Appends the rows; returns why some were refused, by index."""
        written = shared_writer(self._destination, SIGNIN_SCHEMA, self._policy).write(rows, _count_retry)
        write_metrics.count_rows(rows, written)
        return dict(written.refused)

    def _reset(self) -> None:
        self._chunk: list[Any] = []
        self._payloads: list[bytes] = []
        self._room = 0  # in the chunk, in bytes; the first message is looked at by itself
        self._rows: list[Row] = []
        self._messages: list[Any] = []
        self._held_bytes = 0
        self._until = _NEVER

    def _look(self) -> Iterable[Row]:
        """Decodes the chunk, and sends the rows if they are enough or the oldest has waited long enough."""
        now = time.monotonic()
        letters = self._extract()
        count = len(self._rows)
        if (
            now >= self._until
            or count >= self._policy.max_rows
            or self._held_bytes > min(MAX_HELD_BYTES, self._policy.max_bytes)
        ):
            return chain(letters, self._flush())
        if self._until == _NEVER:
            self._until = now + self._policy.max_seconds
        self._room = min(
            _CHUNK_BYTES,
            self._policy.max_bytes - self._held_bytes,
            (self._policy.max_rows - count) * _MESSAGE_BYTES - 1,
        )
        return letters

    def _extract(self) -> list[Row]:
        """Makes the chunk rows, and returns the dead letters among them."""
        if not self._chunk:
            return []
        rows, messages, letters = self._extractor.extract_all(self._chunk, self._payloads)
        self._rows += rows
        self._messages += messages
        self._held_bytes += sum(map(len, self._payloads)) + attribute_bytes(self._chunk)
        self._chunk, self._payloads = [], []
        return [dict(letter) for letter in letters]

    def _flush(self) -> Iterator[Row]:
        """Sends the rows when the first of what it yields is asked for: when the letters before are out."""
        rows, messages = self._rows, self._messages
        self._reset()
        if not rows:
            return
        with self._traces.of_messages(messages, str(self._destination.table)):
            refused = self.write(rows)
        self._extractor.parsed += len(rows) - len(refused)
        if refused:
            Metrics.counter(METRICS_NAMESPACE, "rows_refused").inc(len(refused))
        for index, detail in refused.items():
            yield dict(self._extractor.refuse(messages[index], "write", "row_refused", detail, rows[index]))


class _WriteDeadLettersFn(beam.DoFn):  # type: ignore[misc]
    def __init__(
        self, destination: Destination, policy: WritePolicy, topic: Topic | None, traces: WriteTraces
    ) -> None:
        super().__init__()
        self._traces = traces
        self._destination = destination
        self._policy = policy
        self._topic = topic
        self._letters: list[Row] = []
        self._bytes = 0
        self._most = 1

    def start_bundle(self) -> None:
        self._letters, self._bytes = [], 0
        self._most = 1  # letters that are collected; the first tells whether the table takes any

    def process(self, letter: Row) -> None:
        self._letters.append(letter)
        self._bytes += len(letter["payload"])
        for record in letter.get("attributes", ()):
            self._bytes += len(record["key"]) + len(record["value"])
        if self._bytes > self._policy.max_bytes or len(self._letters) >= self._most:
            self._flush()

    def finish_bundle(self) -> None:
        self._flush()

    def _flush(self) -> None:
        letters, self._letters, self._bytes = self._letters, [], 0
        self._most = self._policy.max_rows
        if not letters:
            return
        with self._traces.of_dead_letters(letters, str(self._destination.table)):
            self._append(letters)
        if self._topic:
            failed = shared_publisher(self._topic).publish(letters)
            published = len(letters) - sum(map(came_back, letters)) - failed
            Metrics.counter(METRICS_NAMESPACE, "dead_letters_published").inc(published)
            if failed:
                Metrics.counter(METRICS_NAMESPACE, "dead_letters_unpublished").inc(failed)

    def _append(self, letters: list[Row]) -> None:
        writer = shared_writer(self._destination, DEAD_LETTER_SCHEMA, self._policy)
        refused = writer.write(letters, _count_retry).refused
        written = len(letters) - len(refused)
        if refused:
            again = [shortened(letters[index], detail) for index, detail in refused.items()]
            lost = writer.write(again, _count_retry).refused
            written += len(again) - len(lost)
            for index, detail in lost.items():
                letter = again[index]
                # Never its payload: what it holds is nobody's business here.
                _log.error(
                    "A dead letter of the stage %s, reason %s, message %s, is refused by %s: %s",
                    letter["stage"],
                    letter["reason"],
                    letters[list(refused)[index]].get("message_id", "unknown"),
                    self._destination.table,
                    detail,
                )
            if lost:
                Metrics.counter(METRICS_NAMESPACE, "dead_letters_refused").inc(len(lost))
        Metrics.counter(METRICS_NAMESPACE, "dead_letters_written").inc(written)


@functools.cache
def _spare_the_collector() -> None:
    """Takes what this process has loaded out of the garbage collector's sight, once.

    Rows that wait for their request make it search the whole heap again and again, Beam and all: with
    attributes that costs more than all else that is done to a row.
    """
    gc.freeze()


def _count_retry() -> None:
    Metrics.counter(METRICS_NAMESPACE, "write_retries").inc()
