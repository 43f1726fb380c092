"""Many sign-ins in one body, as a JSON array or one on each line, under the contract of `signin_event`.

The whole body is decoded in one go. Only what fails is looked at again, alone and by `signin_event`, so
that an event means the same in a batch as by itself.
"""

from __future__ import annotations

import re
from datetime import datetime

import msgspec

from transforms import signin_event, timestamps
from transforms.signin_event import EventError

# A valid event has at most 38 commas and opening brackets, the comma behind it included.
MOST_MARKS_OF_AN_EVENT = 64
# 32 attributes of 64 + 1024 characters of which each is written as two `\uXXXX` are 418 KB.
MOST_EVENT_BYTES = 512 * 1024
_MARK_OUTSIDE_OF_STRINGS = rb'(?:[^",\[{]++|"(?:[^"\\\n]++|\\.)*+"?)*+[,\[{]'
_JSON_SPACE = b" \t\n\r"


class BatchSignin(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """One valid sign-in of a batch; encoded as it stands it is the canonical JSON."""

    userid: str
    date: str
    event_id: str | None = None
    attributes: dict[str, str] | None = None


class TooManyError(ValueError):
    """More events than allowed, or more values in them than so many events can have."""


Decoded = list[BatchSignin | EventError]
_ARRAY = msgspec.json.Decoder(list[BatchSignin])
_LINE = msgspec.json.Decoder(BatchSignin)
_RAW_ARRAY = msgspec.json.Decoder(list[msgspec.Raw])
_encode = msgspec.json.Encoder().encode


def decode_array(data: bytes, most: int, latest: datetime) -> Decoded:
    """The sign-ins of a JSON array of at most `most`, or why one is none, in the order of the array.

    Raises TooManyError, and EventError where the body as a whole is no array: `not_an_array`, or a code
    of `signin_event.REASONS`.
    """
    _require_few(data, most)
    _require_text(data)
    latest_text = timestamps.from_datetime(latest)
    try:
        events = _ARRAY.decode(data)
    except (ValueError, RecursionError):
        return [_alone(raw, latest) for raw in _raw_items(data, most)]
    if len(events) > most:
        raise _too_many(most)
    return [event if _is_valid(event, latest_text) else _alone(_encode(event), latest) for event in events]


def decode_lines(data: bytes, most: int, latest: datetime) -> Decoded:
    """The sign-ins of a body that has one on each of at most `most` lines, or why a line holds none.

    The line feed after the last line may be missing. Raises TooManyError, and EventError `empty_body`.
    """
    data = data.removesuffix(b"\n")
    if not data.strip(_JSON_SPACE):
        raise EventError("empty_body", None, "the body is empty")
    count = data.count(b"\n") + 1
    if count > most:
        raise _too_many(most)
    _require_few(data, most)
    latest_text = timestamps.from_datetime(latest)
    try:
        if not data.isascii():
            data.decode()
        events = _LINE.decode_lines(data) if _are_objects_apart(data, count) else []
    except (ValueError, RecursionError):
        events = []
    if len(events) != count:
        return [_alone(line, latest) for line in data.split(b"\n")]
    return [event if _is_valid(event, latest_text) else _alone(_encode(event), latest) for event in events]


def encode(event: BatchSignin) -> bytes:
    """The canonical JSON, byte for byte that of `signin_event.encode`."""
    return _encode(event)


def _are_objects_apart(data: bytes, lines: int) -> bool:
    """Tells whether every line feed stands between objects: no line is empty, none goes on in the next.

    msgspec takes a line feed for any other space. With this and as many objects as lines, each line is one:
    no JSON object has `}`, a line feed and `{` in a row, since between members there is a comma, and a string
    has no line feed.
    """
    return data.count(b"}\n{") + data.count(b"}\r\n{") == lines - 1


def _is_valid(event: BatchSignin, latest: str) -> bool:
    """Tells whether the event is right, and brings it into its canonical form."""
    try:
        event.date = date = timestamps.canonical(event.date)
    except ValueError:
        return False
    if date > latest or not signin_event.is_userid(event.userid):
        return False
    if event.event_id is not None and not signin_event.is_event_id(event.event_id):
        return False
    if event.attributes is not None:
        if not signin_event.are_attributes(event.attributes):
            return False
        event.attributes = dict(sorted(event.attributes.items())) or None
    return True


def _alone(data: bytes | msgspec.Raw, latest: datetime) -> BatchSignin | EventError:
    if len(data) > MOST_EVENT_BYTES:  # it would be copied several times before it is refused
        detail = f"an event may have at most {MOST_EVENT_BYTES} bytes"
        return EventError("event_too_large", None, detail)
    try:
        event = signin_event.decode(bytes(data), unknown_fields="refuse", latest=latest)
    except EventError as error:
        return EventError(
            error.code, error.field, error.detail
        )  # its traceback would keep every frame's bytes
    attributes = dict(sorted(event.attributes.items())) or None
    return BatchSignin(event.userid, event.date, event.event_id, attributes)


def _raw_items(data: bytes, most: int) -> list[msgspec.Raw]:
    try:
        items = _RAW_ARRAY.decode(data)
    except msgspec.ValidationError:
        raise EventError("not_an_array", None, "the body is JSON, but not an array") from None
    except (ValueError, RecursionError):
        raise EventError("invalid_json", None, f"the body of {len(data)} bytes is not JSON") from None
    if len(items) > most:
        raise _too_many(most)
    return items


def _require_text(data: bytes) -> None:
    if not data.strip(_JSON_SPACE):
        raise EventError("empty_body", None, "the body is empty")
    try:
        if not data.isascii():
            data.decode()
    except UnicodeDecodeError as error:
        raise EventError("invalid_utf8", None, f"byte {error.start} is not UTF-8") from None


def _require_few(data: bytes, most: int) -> None:
    """Raises TooManyError before millions of values become objects that take 50 bytes each."""
    marks = most * MOST_MARKS_OF_AN_EVENT
    if data.count(b",") + data.count(b"[") + data.count(b"{") <= marks:
        return
    if re.match(b"(?:%s){%d}+" % (_MARK_OUTSIDE_OF_STRINGS, marks + 1), data):
        raise _too_many(most)


def _too_many(most: int) -> TooManyError:
    return TooManyError(f"a batch may have at most {most} events, and no more than those can hold")
