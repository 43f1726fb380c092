"""Appending rows to BigQuery by insertAll: the same steps on Dataflow and on one machine.

A bundle ends only when BigQuery has acknowledged each of its rows or refused it for good, so what
the runner commits is in a table. At least once: a bundle that fails halfway comes again whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam import pvalue
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows

from transforms.bigquery_insert import (
    InsertError,
    InsertPolicy,
    Refusal,
    Target,
    insert,
    shared_client,
    shared_columns,
)
from transforms.bigquery_rows import (
    DEAD_LETTER_COLUMNS,
    DEAD_LETTER_REQUIRED_COLUMNS,
    SIGNIN_COLUMNS,
    SIGNIN_REQUIRED_COLUMNS,
    Row,
    TableRef,
    dead_letter_row,
    from_row,
)
from transforms.pubsub_message import DEAD_LETTERS, METRICS_NAMESPACE
from transforms.signin_event import encode

_ENCODER = msgspec.json.Encoder()
# What insertAll's JSON has around a row: its braces, the null insert id, spaces after colons and commas.
_ROW_FRAME_BYTES = 256
_NOT_ASCII = bytes(range(128, 256))


class WriteSignins(beam.PTransform):  # type: ignore[misc]
    """Appends sign-in rows to `table`; the output `DEAD_LETTERS` has the rows that BigQuery refuses.

    Such a dead letter has the stage `write` and the reason `row_refused`; its payload is the canonical
    JSON of the sign-in, because the message's own bytes are no longer at hand. `emulator_host` is the
    URL of an emulator; empty means Google. Columns that the table lacks are not sent.
    """

    def __init__(
        self,
        table: TableRef,
        *,
        emulator_host: str = "",
        policy: InsertPolicy | None = None,
        pipeline_version: str = "",
        job_id: str = "",
    ) -> None:
        super().__init__()
        self._write = _WriteSigninsFn(
            table, emulator_host, policy or InsertPolicy(), pipeline_version, job_id
        )

    def expand(self, rows: Any) -> Any:
        return rows | "Insert sign-ins" >> beam.ParDo(self._write).with_outputs(DEAD_LETTERS, main="written")


class WriteDeadLetters(beam.PTransform):  # type: ignore[misc]
    """Appends dead letters to `table`; one that is refused fails the bundle, so that it is not lost."""

    def __init__(
        self, table: TableRef, *, emulator_host: str = "", policy: InsertPolicy | None = None
    ) -> None:
        super().__init__()
        self._write = _WriteDeadLettersFn(table, emulator_host, policy or InsertPolicy())

    def expand(self, rows: Any) -> Any:
        return rows | "Insert dead letters" >> beam.ParDo(self._write)


class _WriteRowsFn(beam.DoFn):  # type: ignore[misc]
    """Collects rows into requests within the policy and sends the last one when the bundle ends."""

    columns: frozenset[str]
    required_columns: frozenset[str]
    written_counter: str

    def __init__(self, table: TableRef, emulator_host: str, policy: InsertPolicy) -> None:
        super().__init__()
        self._table = table
        self._emulator_host = emulator_host
        self._policy = policy
        self._rows: list[Row] = []
        self._bytes = 0

    def start_bundle(self) -> None:
        self._rows, self._bytes = [], 0

    def process(self, row: Row) -> Iterable[Any]:
        size = request_bytes(row)
        outputs: list[Any] = []
        if self._rows and self._bytes + size > self._policy.max_bytes:
            outputs += self._flush()
        self._rows.append(row)
        self._bytes += size
        if len(self._rows) >= self._policy.max_rows:
            outputs += self._flush()
        return outputs

    def finish_bundle(self) -> Iterable[Any]:
        for output in self._flush():
            yield pvalue.TaggedOutput(output.tag, GlobalWindows.windowed_value(output.value))

    def refused(self, refusals: list[Refusal]) -> Iterator[pvalue.TaggedOutput]:
        """What becomes of the rows that BigQuery refused."""
        raise NotImplementedError

    def _flush(self) -> list[Any]:
        rows, self._rows, self._bytes = self._rows, [], 0
        if not rows:
            return []
        retries = Metrics.counter(METRICS_NAMESPACE, "insert_retries")
        refusals = insert(self._target(), rows, self._policy, retries.inc)
        Metrics.counter(METRICS_NAMESPACE, self.written_counter).inc(len(rows) - len(refusals))
        return list(self.refused(refusals)) if refusals else []

    def _target(self) -> Target:
        """The table with the columns that it has. Raises InsertError where it lacks one that a row needs."""
        client = shared_client(self._table.project, self._emulator_host)
        columns = shared_columns(self._table, self._emulator_host)
        missing = self.required_columns - columns
        if missing:
            raise InsertError(f"{self._table} has no column {', '.join(sorted(missing))}")
        return Target(client, self._table, None if columns >= self.columns else columns)


class _WriteSigninsFn(_WriteRowsFn):
    columns = SIGNIN_COLUMNS
    required_columns = SIGNIN_REQUIRED_COLUMNS
    written_counter = "rows_written"

    def __init__(
        self,
        table: TableRef,
        emulator_host: str,
        policy: InsertPolicy,
        pipeline_version: str,
        job_id: str,
    ) -> None:
        super().__init__(table, emulator_host, policy)
        self._pipeline_version = pipeline_version
        self._job_id = job_id

    def refused(self, refusals: list[Refusal]) -> Iterator[pvalue.TaggedOutput]:
        Metrics.counter(METRICS_NAMESPACE, "rows_refused").inc(len(refusals))
        for row, detail in refusals:
            letter = dead_letter_row(
                stage="write",
                reason="row_refused",
                detail=detail,
                payload=encode(from_row(row)),
                publish_time=row.get("published_at"),
                event_id=row.get("event_id"),
                pipeline_version=self._pipeline_version,
                job_id=self._job_id,
            )
            yield pvalue.TaggedOutput(DEAD_LETTERS, letter)


class _WriteDeadLettersFn(_WriteRowsFn):
    columns = DEAD_LETTER_COLUMNS
    required_columns = DEAD_LETTER_REQUIRED_COLUMNS
    written_counter = "dead_letters_written"

    def refused(self, refusals: list[Refusal]) -> Iterator[pvalue.TaggedOutput]:
        raise InsertError(f"{len(refusals)} dead letters were refused, the first: {refusals[0].detail}")


def request_bytes(row: Row) -> int:
    """No less than what the row takes in a request, in bytes; the client escapes all but printable ASCII."""
    encoded = _ENCODER.encode(row)
    size = len(encoded) + _ROW_FRAME_BYTES + 5 * encoded.count(b"\x7f")
    if not encoded.isascii():
        # Two bytes of UTF-8 become the six of \u00e9, three become six, four become twelve.
        size += 2 * (len(encoded) - len(encoded.translate(None, _NOT_ASCII)))
    return size
