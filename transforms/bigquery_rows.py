"""The two BigQuery tables: their columns, and how a sign-in or a dead letter becomes a row of them."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from transforms import timestamps
from transforms.signin_columns import Columns
from transforms.signin_event import SigninEvent

Row = dict[str, Any]
Stage = Literal["decode", "validate", "write"]

_ATTRIBUTES: dict[str, Any] = {
    "name": "attributes",
    "type": "RECORD",
    "mode": "REPEATED",
    "fields": [
        {"name": "key", "type": "STRING", "mode": "REQUIRED"},
        {"name": "value", "type": "STRING", "mode": "NULLABLE"},
    ],
}
SIGNIN_SCHEMA: list[dict[str, Any]] = [
    {"name": "userid", "type": "STRING", "mode": "REQUIRED"},
    {"name": "date", "type": "TIMESTAMP", "mode": "REQUIRED"},
    {"name": "event_id", "type": "STRING", "mode": "NULLABLE"},
    {"name": "published_at", "type": "TIMESTAMP", "mode": "NULLABLE"},
    _ATTRIBUTES,
]
DEAD_LETTER_SCHEMA: list[dict[str, Any]] = [
    {"name": "failed_at", "type": "TIMESTAMP", "mode": "REQUIRED"},
    {"name": "stage", "type": "STRING", "mode": "REQUIRED"},
    {"name": "reason", "type": "STRING", "mode": "REQUIRED"},
    {"name": "detail", "type": "STRING", "mode": "NULLABLE"},
    {"name": "payload", "type": "BYTES", "mode": "NULLABLE"},
    _ATTRIBUTES,
    {"name": "message_id", "type": "STRING", "mode": "NULLABLE"},
    {"name": "publish_time", "type": "TIMESTAMP", "mode": "NULLABLE"},
    {"name": "event_id", "type": "STRING", "mode": "NULLABLE"},
    {"name": "pipeline_version", "type": "STRING", "mode": "NULLABLE"},
    {"name": "job_id", "type": "STRING", "mode": "NULLABLE"},
]
SIGNIN_COLUMNS = frozenset(column["name"] for column in SIGNIN_SCHEMA)
SIGNIN_REQUIRED_COLUMNS = frozenset(c["name"] for c in SIGNIN_SCHEMA if c["mode"] == "REQUIRED")
DEAD_LETTER_COLUMNS = frozenset(column["name"] for column in DEAD_LETTER_SCHEMA)
DEAD_LETTER_REQUIRED_COLUMNS = frozenset(c["name"] for c in DEAD_LETTER_SCHEMA if c["mode"] == "REQUIRED")
SIGNIN_PARTITIONING: dict[str, str] = {"type": "DAY", "field": "date"}
SIGNIN_CLUSTERING: list[str] = ["userid"]
DEAD_LETTER_PARTITIONING: dict[str, str] = {"type": "DAY", "field": "failed_at"}

# A request of insertAll may have 10 MB; base64 makes 4 bytes of 3, and the other columns need room.
MAX_DEAD_LETTER_PAYLOAD_BYTES = 6_000_000
MAX_DETAIL_CHARACTERS = 1000

_CUT_MARK = re.compile(r" \(the first [0-9]+ of [0-9]+ bytes, SHA-256 [0-9a-f]{64}\)$")
_PROJECT = re.compile(r"(?:[a-z0-9.-]+:)?[a-z][a-z0-9-]{4,61}[a-z0-9]")
_DATASET = re.compile(r"[A-Za-z0-9_]{1,1024}")
_TABLE = re.compile(r"[\w\- ]{1,1024}")
_TABLE_NAME = re.compile(r"(?:(?P<project>.+)[:.])?(?P<dataset>[^:.]+)\.(?P<table>[^:.]+)")


class TableRef(NamedTuple):
    """The full name of a BigQuery table; its text is `project.dataset.table`."""

    project: str
    dataset: str
    table: str

    def __str__(self) -> str:
        return f"{self.project}.{self.dataset}.{self.table}"


def parse_table(name: str, default_project: str) -> TableRef:
    """Reads `project:dataset.table`, `project.dataset.table` or `dataset.table`; raises ValueError."""
    match = _TABLE_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not a table name such as project:dataset.table or dataset.table")
    table = TableRef(match["project"] or default_project, match["dataset"], match["table"])
    for part, rule, text in zip(table._fields, (_PROJECT, _DATASET, _TABLE), table, strict=True):
        if not rule.fullmatch(text):
            raise ValueError(f"{text!r} in the table name {name!r} is not a valid {part} name")
    return table


def deduplicated(table: TableRef) -> TableRef:
    """The name of the view that has each event of the table once."""
    return table._replace(table=f"{table.table}_deduplicated")


def deduplicating_query(table: TableRef) -> str:
    """The view's query: of rows with one event id the one published first, and every row without one."""
    return (
        f"SELECT * FROM `{table}` WHERE event_id IS NULL UNION ALL "  # noqa: S608 - a name that was checked
        f"SELECT * FROM `{table}` WHERE event_id IS NOT NULL QUALIFY "
        "ROW_NUMBER() OVER (PARTITION BY event_id ORDER BY published_at IS NULL, published_at) = 1"
    )


def to_row(event: SigninEvent, published_at: str | None = None) -> Row:
    """The row of a sign-in, NULLs left out; `published_at` is RFC 3339."""
    row: Row = {"userid": event.userid, "date": event.date}
    event_id = event.event_id
    if event_id is not None:
        row["event_id"] = event_id
    if published_at is not None:
        row["published_at"] = published_at
    if event.attributes:
        row["attributes"] = _records(event.attributes)
    return row


def to_rows(columns: Columns, published_at: Sequence[str | None] = ()) -> list[Row]:
    """What `to_row` gives for each of the sign-ins that were decoded together, the doubtful ones included."""
    userids, dates, event_ids, _, _ = columns
    optional = [("published_at", published_at)]
    rows: list[Row]
    if all(event_ids):
        rows = [
            {"userid": userid, "date": date, "event_id": event_id}
            for userid, date, event_id in zip(userids, dates, event_ids, strict=True)
        ]
    else:
        rows = [{"userid": userid, "date": date} for userid, date in zip(userids, dates, strict=True)]
        optional.append(("event_id", event_ids))
    for name, column in optional:
        if any(column):
            for row, text in zip(rows, column, strict=True):
                if text is not None:
                    row[name] = text
    if any(columns.attributes):
        for row, attributes in zip(rows, columns.attributes, strict=True):
            if attributes:  # JSON's texts are well-formed
                row["attributes"] = [{"key": key, "value": value} for key, value in attributes.items()]
    return rows


def from_row(row: Mapping[str, Any]) -> SigninEvent:
    """The sign-in that `to_row` made the row of."""
    attributes = {record["key"]: record["value"] for record in row.get("attributes", ())}
    return SigninEvent(row["userid"], row["date"], row.get("event_id"), attributes)


def dead_letter_row(  # noqa: PLR0913 - one argument for each column
    *,
    stage: Stage,
    reason: str,
    detail: str,
    payload: bytes,
    attributes: Mapping[str, str] | None = None,
    message_id: str | None = None,
    publish_time: str | None = None,
    event_id: str | None = None,
    pipeline_version: str | None = None,
    job_id: str | None = None,
    failed_at: str | None = None,
) -> Row:
    """The row of what could not become a sign-in, NULLs left out. Times are RFC 3339.

    `payload` is carried as base64 text, as insertAll wants BYTES. One that does not fit into a request is
    cut, and the detail then tells its whole length and its SHA-256.
    """
    detail = detail[:MAX_DETAIL_CHARACTERS]
    if len(payload) > MAX_DEAD_LETTER_PAYLOAD_BYTES:
        digest = hashlib.sha256(payload).hexdigest()
        detail += f" (the first {MAX_DEAD_LETTER_PAYLOAD_BYTES} of {len(payload)} bytes, SHA-256 {digest})"
        payload = payload[:MAX_DEAD_LETTER_PAYLOAD_BYTES]
    row: Row = {
        "failed_at": failed_at or timestamps.from_datetime(datetime.now(UTC)),
        "stage": stage,
        "reason": reason,
        "detail": well_formed(detail),
        "payload": base64.b64encode(payload).decode("ascii"),
    }
    if attributes:
        row["attributes"] = _records(attributes)
    optional = {
        "message_id": message_id,
        "publish_time": publish_time,
        "event_id": event_id,
        "pipeline_version": pipeline_version,
        "job_id": job_id,
    }
    row.update({name: well_formed(text) for name, text in optional.items() if text})
    return row


def shortened(letter: Row, refusal: str) -> Row:
    """A dead letter that BigQuery refused, with no more than it needs: its payload, and why it is one."""
    short = {name: letter[name] for name in ("failed_at", "stage", "reason", "payload")}
    detail = f"refused as it was ({refusal[:300]}); {letter.get('detail', '')}"
    return short | {"detail": well_formed(detail[-2 * MAX_DETAIL_CHARACTERS :])}


def is_cut(detail: str | None) -> bool:
    """Tells from the detail of a dead letter whether its payload is only a part of the message."""
    return _CUT_MARK.search(detail or "") is not None


def well_formed(text: str) -> str:
    """The text with unpaired surrogates, for which UTF-8 has no bytes, spelled out in ASCII."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _records(attributes: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": well_formed(key), "value": well_formed(value)} for key, value in attributes.items()]
