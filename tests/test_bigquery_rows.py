"""The columns of the two tables, and the rows made for them."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from datetime import datetime

import pytest

from transforms import bigquery_rows
from transforms.bigquery_rows import (
    DEAD_LETTER_COLUMNS,
    MAX_DEAD_LETTER_PAYLOAD_BYTES,
    SIGNIN_COLUMNS,
    SIGNIN_SCHEMA,
    TableRef,
    dead_letter_row,
    from_row,
    parse_table,
    to_row,
)
from transforms.signin_event import SigninEvent

EVENT = SigninEvent("u1", "2024-01-02T03:04:05.000000Z", "id-1", {"ip": "192.0.2.1"})


def test_a_row_has_every_column_of_the_table_and_turns_back_into_its_event():
    row = to_row(EVENT, "2024-01-02T03:04:06.000000Z")
    assert set(row) == SIGNIN_COLUMNS
    assert row["attributes"] == [{"key": "ip", "value": "192.0.2.1"}]
    assert from_row(row) == EVENT


def test_a_row_leaves_out_what_is_null():
    bare = SigninEvent("u1", "2024-01-02T03:04:05.000000Z")
    assert to_row(bare) == {"userid": "u1", "date": "2024-01-02T03:04:05.000000Z"}
    assert from_row(to_row(bare)) == bare


def test_only_the_columns_of_the_article_are_required():
    assert [(c["name"], c["type"]) for c in SIGNIN_SCHEMA if c["mode"] == "REQUIRED"] == [
        ("userid", "STRING"),
        ("date", "TIMESTAMP"),
    ]


def test_a_dead_letter_carries_the_bytes_unchanged():
    row = dead_letter_row(
        stage="decode",
        reason="invalid_json",
        detail="no",
        payload=b"\x00\xff",
        attributes={"k": "v"},
        message_id="7",
        publish_time="2024-01-02T03:04:05.000000Z",
        event_id="id",
        pipeline_version="1",
        job_id="j",
    )
    assert set(row) == DEAD_LETTER_COLUMNS
    assert base64.b64decode(row["payload"]) == b"\x00\xff"
    assert datetime.fromisoformat(row["failed_at"]).utcoffset().total_seconds() == 0


def test_a_payload_that_no_request_can_hold_is_cut_and_named_by_its_digest():
    payload = b"x" * (MAX_DEAD_LETTER_PAYLOAD_BYTES + 1)
    row = dead_letter_row(stage="decode", reason="invalid_json", detail="no", payload=payload)
    assert base64.b64decode(row["payload"]) == payload[:-1]
    assert hashlib.sha256(payload).hexdigest() in row["detail"]
    assert str(len(payload)) in row["detail"]


def test_text_that_has_no_utf_8_is_spelled_out():
    row = dead_letter_row(
        stage="decode",
        reason="r",
        detail="\ud800",
        payload=b"",
        attributes={"\udfff": "é\ud800"},
        message_id="\ud801",
    )
    assert json.dumps(row, ensure_ascii=False).encode("utf-8")
    assert row["attributes"] == [{"key": "\\udfff", "value": "é\\ud800"}]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("YourDataset.YourTable", ("proj-default", "YourDataset", "YourTable")),
        ("my-project:data.table", ("my-project", "data", "table")),
        ("my-project.data.table", ("my-project", "data", "table")),
        ("example.com:my-project:data.table", ("example.com:my-project", "data", "table")),
        ("example.com:my-project.data.table", ("example.com:my-project", "data", "table")),
        ("data.Sign ins-ü", ("proj-default", "data", "Sign ins-ü")),
    ],
)
def test_a_table_name_is_read_in_each_of_its_forms(name: str, expected: tuple[str, str, str]):
    table = parse_table(name, "proj-default")
    assert table == TableRef(*expected)
    assert parse_table(str(table), "other-project") == table


@pytest.mark.parametrize(
    "name",
    [
        "",
        "table",
        "a:b",
        "my-project:table",
        ".t",
        "d.",
        "d.t$20240101",
        "d-1.t",
        "`d.t`",
        "P!:d.t",
        "a.b.c.d.e",
        "d.t\n",
    ],
)
def test_what_is_no_table_name_is_refused(name: str):
    with pytest.raises(ValueError, match="not a"):
        parse_table(name, "proj-default")


def test_the_contract_imports_neither_beam_nor_a_google_client():
    code = (
        "import sys, transforms.signin_event, transforms.bigquery_rows, transforms.bigquery_tables; "
        "print([m for m in sys.modules if m.startswith(('apache_beam', 'google'))])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[]"
    assert bigquery_rows.__name__ == "transforms.bigquery_rows"
