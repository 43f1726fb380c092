"""Beam's own ways to write to BigQuery, for who chooses them by name; each is slower than ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import apache_beam as beam
from apache_beam.io.gcp.bigquery import BigQueryDisposition, WriteToBigQuery
from apache_beam.io.gcp.bigquery_tools import RetryStrategy
from apache_beam.utils.timestamp import Timestamp

from transforms.bigquery_rows import SIGNIN_SCHEMA, Row, TableRef, dead_letter_row, from_row
from transforms.signin_event import encode

StockMethod = Literal["STREAMING_INSERTS", "STORAGE_WRITE_API"]


class WriteRows(beam.PTransform):  # type: ignore[misc]
    """Appends rows to `table`; the output is the dead letters of those that BigQuery refuses.

    Their payload is the canonical JSON of the sign-in, for a row has left its message behind here. The
    table must have all columns. STORAGE_WRITE_API needs Java where the graph is built.
    """

    def __init__(self, table: TableRef, method: StockMethod, *, pipeline_version: str, job_id: str) -> None:
        super().__init__()
        self._table = table
        self._method = method
        self._origin = {"pipeline_version": pipeline_version, "job_id": job_id}

    def expand(self, rows: Any) -> Any:
        options: dict[str, Any] = {
            "table": f"{self._table.project}:{self._table.dataset}.{self._table.table}",
            "schema": {"fields": SIGNIN_SCHEMA},
            "method": self._method,
            "create_disposition": BigQueryDisposition.CREATE_NEVER,
            "write_disposition": BigQueryDisposition.WRITE_APPEND,
        }
        if self._method == "STORAGE_WRITE_API":
            rows = rows | "Type timestamps" >> beam.Map(_with_timestamps)
            result = rows | "Storage Write API" >> WriteToBigQuery(**options, use_at_least_once=True)
            return result.failed_rows_with_errors | "Refused rows" >> beam.Map(_storage_letter, self._origin)
        # Known to the runner by its import, and imported by the workers.
        from transforms import bigquery_row_sizes  # noqa: F401

        # The default, RETRY_ALWAYS, sends a row that BigQuery refuses for ever again.
        result = rows | "Streaming inserts" >> WriteToBigQuery(
            **options, insert_retry_strategy=RetryStrategy.RETRY_ON_TRANSIENT_ERROR
        )
        return result.failed_rows_with_errors | "Refused rows" >> beam.Map(_insert_letter, self._origin)


def _with_timestamps(row: Row) -> Row:
    times = {name: row[name] for name in ("date", "published_at") if name in row}
    return row | {name: Timestamp.from_rfc3339(text) for name, text in times.items()}


def _insert_letter(failed: tuple[str, Row, Any], origin: dict[str, Any]) -> Row:
    _, row, errors = failed
    return _letter(row, str(errors), origin)


def _storage_letter(failed: Mapping[str, Any], origin: dict[str, Any]) -> Row:
    row = {name: value for name, value in failed["failed_row"].items() if value is not None}
    row |= {name: row[name].to_rfc3339() for name in ("date", "published_at") if name in row}
    return _letter(row, str(failed["error_message"]), origin)


def _letter(row: Row, detail: str, origin: dict[str, Any]) -> Row:
    return dead_letter_row(
        stage="write",
        reason="row_refused",
        detail=detail,
        payload=encode(from_row(row)),
        publish_time=row.get("published_at"),
        event_id=row.get("event_id"),
        **origin,
    )
