"""What BigQuery takes as a row in JSON, after its documentation, written down a second time as a judge.

It shares nothing with `transforms` but the schemas: local servers take what the real one refuses.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

MAX_ROW_BYTES = 10_000_000
_TIMESTAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(\.\d{1,6})?Z", re.ASCII)


def complaints(row: Mapping[str, Any], schema: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why BigQuery would refuse the row of a table with this schema; empty where it would not."""
    found = list(_fields(row, schema, ""))
    try:
        size = len(json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8"))
    except (TypeError, ValueError) as error:
        return [*found, f"no JSON in UTF-8: {error}"]
    return found if size < MAX_ROW_BYTES else [*found, f"{size} bytes"]


def _fields(row: Any, schema: Sequence[Mapping[str, Any]], place: str) -> Iterator[str]:
    if not isinstance(row, Mapping):
        yield f"{place or 'row'} is no record"
        return
    known = {column["name"]: column for column in schema}
    yield from (f"{place}{name} is no column" for name in row if name not in known)
    for name, column in known.items():
        value, where = row.get(name), f"{place}{name}"
        if column["mode"] == "REPEATED":
            if not isinstance(value, list | type(None)):
                yield f"{where} is no list"
                continue
            for index, item in enumerate(value or ()):
                yield from _value(item, column, f"{where}[{index}]")
        elif value is None:
            if column["mode"] == "REQUIRED":
                yield f"{where} is missing"
        else:
            yield from _value(value, column, where)


def _value(value: Any, column: Mapping[str, Any], where: str) -> Iterator[str]:
    if column["type"] == "RECORD":
        yield from _fields(value, column["fields"], f"{where}.")
    elif not isinstance(value, str):
        yield f"{where} is no text"
    elif column["type"] == "TIMESTAMP" and not _is_timestamp(value):
        yield f"{where} is no timestamp: {value!r}"
    elif column["type"] == "BYTES":
        try:
            base64.b64decode(value.encode("ascii"), validate=True)
        except (UnicodeError, binascii.Error):
            yield f"{where} is no base64"


def _is_timestamp(text: str) -> bool:
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        return False
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    try:
        date(year, month, day)
    except ValueError:
        return False
    return hour < 24 and minute < 60 and second < 60
