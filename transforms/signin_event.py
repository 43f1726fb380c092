"""The contract of a sign-in: its fields, their limits, and its one canonical form.

The HTTP edge and the pipeline read messages through the same `decode`. Where JSON leaves a choice:
a repeated key counts with its last value, `null` is the same as an absent field, and a byte order
mark, `NaN`, an unpaired surrogate or nesting deeper than `MAX_NESTING` is not JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Literal

import msgspec

from transforms import timestamps

SCHEMA_VERSION = "1"
MAX_USERID_CHARACTERS = 128
MAX_ATTRIBUTES = 32
MAX_ATTRIBUTE_KEY_CHARACTERS = 64
MAX_ATTRIBUTE_VALUE_CHARACTERS = 1024
MAX_NESTING = 64

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "empty_body": "There are no bytes, or nothing but white space.",
        "invalid_utf8": "The bytes are not UTF-8.",
        "invalid_json": "The text is not JSON as RFC 8259 has it.",
        "not_an_object": "The JSON is not an object.",
        "unknown_field": "The object has a field that a sign-in does not have.",
        "userid_missing": "There is no userid.",
        "userid_invalid": (
            f"userid is not a string of 1 to {MAX_USERID_CHARACTERS} characters without control characters."
        ),
        "date_missing": "There is no date.",
        "date_invalid": "date is not an RFC 3339 time between the years 0001 and 9999.",
        "date_in_future": "date lies further ahead of the clock than is allowed.",
        "event_id_invalid": "event_id is not a string of 1 to 128 of A-Z a-z 0-9 . _ : -",
        "attributes_invalid": (
            f"attributes is not a map of at most {MAX_ATTRIBUTES} strings, with keys up to "
            f"{MAX_ATTRIBUTE_KEY_CHARACTERS} and values up to {MAX_ATTRIBUTE_VALUE_CHARACTERS} characters."
        ),
    }
)
# The codes of bytes that are no JSON object at all; every other code speaks of one of its fields.
UNDECODABLE = frozenset({"empty_body", "invalid_utf8", "invalid_json", "not_an_object"})

_FIELDS = frozenset({"userid", "date", "event_id", "attributes"})
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_EVENT_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_FIELD_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
# One that does not end reaches to the end of the bytes. Possessive, and a match at every quote: whatever
# the bytes are, each is looked at once.
_JSON_STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_JSON_SPACE = b" \t\n\r"


class SigninEvent(msgspec.Struct, frozen=True):
    """A valid sign-in; `date` is UTC as `YYYY-MM-DDTHH:MM:SS.ffffffZ`."""

    userid: str
    date: str
    event_id: str | None = None
    attributes: dict[str, str] = {}


class EventError(ValueError):
    """Why bytes are not a sign-in: a code of `REASONS`, the field if it is about one, and a sentence.

    Nothing here repeats a value of the message, so that it may be logged; an unknown field's name
    is repeated where it looks like a name.
    """

    def __init__(self, code: str, field: str | None, detail: str) -> None:
        super().__init__(code, field, detail)
        self.code = code
        self.field = field
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


class _StrictEvent(SigninEvent, forbid_unknown_fields=True, frozen=True):
    pass


_DECODERS: Mapping[str, Callable[[bytes], SigninEvent]] = {
    "ignore": msgspec.json.Decoder(SigninEvent).decode,
    "refuse": msgspec.json.Decoder(_StrictEvent).decode,
}
# With deeper nesting than allowed a sign-in has at least these many brackets, and its two fields besides.
_SHALLOW_BYTES = 2 * MAX_NESTING + len('{"userid":"u","date":"2017-10-17T20:57:17"}')
_RAW_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXT = msgspec.json.Decoder(str)
_ENCODER = msgspec.json.Encoder()


def decode(
    data: bytes, *, unknown_fields: Literal["refuse", "ignore"] = "ignore", latest: datetime | None = None
) -> SigninEvent:
    """The sign-in that `data` holds. Raises EventError, and nothing else, where it holds none.

    `latest` (with a time zone) is the last moment that `date` may name.
    """
    event = decode_quickly(data, _DECODERS[unknown_fields])
    if event is None:
        event = _decode_by_field(data, unknown_fields)
    if latest is not None and datetime.fromisoformat(event.date) > latest:
        raise EventError("date_in_future", "date", "date lies further ahead of the clock than is allowed")
    return event


def decode_quickly(
    data: bytes, decoder: Callable[[bytes], SigninEvent] = _DECODERS["ignore"]
) -> SigninEvent | None:
    """What `decode` gives for what is right, which is nearly all; None leaves the judgement to `decode`."""
    if len(data) > _SHALLOW_BYTES and data.count(b"[") + data.count(b"{") > MAX_NESTING:
        return None
    try:
        if not data.isascii():
            data.decode()  # msgspec does not look inside the values that it skips
        event = decoder(data)
        date = timestamps.canonical(event.date)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None
    userid, event_id, attributes = event.userid, event.event_id, event.attributes
    # Most ids are printable; only the others pay for the search.
    if not (0 < len(userid) <= MAX_USERID_CHARACTERS and (userid.isprintable() or is_userid(userid))):
        return None
    if (event_id is not None and not is_event_id(event_id)) or (
        attributes and not are_attributes(attributes)
    ):
        return None
    if date is event.date and type(event) is SigninEvent:
        return event
    return SigninEvent(userid, date, event_id, attributes)


def _decode_by_field(data: bytes, unknown_fields: Literal["refuse", "ignore"]) -> SigninEvent:
    """The slow way: finds the first thing that is wrong and names it."""
    fields = _raw_fields(data)
    if unknown_fields == "refuse":
        for name in fields:
            if name not in _FIELDS:
                raise _unknown_field(name)
    userid = _text(fields, "userid")
    if userid is None:
        raise EventError("userid_missing", "userid", "userid is required")
    if not is_userid(userid):
        detail = f"userid must be 1 to {MAX_USERID_CHARACTERS} characters without control characters"
        raise EventError("userid_invalid", "userid", f"{detail}, this one has {len(userid)} characters")
    date = _text(fields, "date")
    if date is None:
        raise EventError("date_missing", "date", "date is required")
    try:
        date = timestamps.canonical(date)
    except ValueError as error:
        raise EventError("date_invalid", "date", f"date is {error}") from None
    event_id = _text(fields, "event_id")
    if event_id is not None and not is_event_id(event_id):
        detail = "event_id must be 1 to 128 of A-Z a-z 0-9 . _ : -"
        raise EventError("event_id_invalid", "event_id", f"{detail}, this one has {len(event_id)} characters")
    return SigninEvent(userid, date, event_id, _attributes(fields))


def _raw_fields(data: bytes) -> dict[str, msgspec.Raw]:
    """The members of the object, `null` ones left out. Raises EventError if the bytes hold no object."""
    if not data.strip(_JSON_SPACE):
        raise EventError("empty_body", None, "the body is empty")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise EventError("invalid_utf8", None, f"byte {error.start} is not UTF-8") from None
    if data.startswith(b"\xef\xbb\xbf"):
        raise EventError("invalid_json", None, "the body begins with a byte order mark")
    if data.count(b"[") + data.count(b"{") > MAX_NESTING and _nesting(data) > MAX_NESTING:
        raise EventError("invalid_json", None, f"the body is nested more than {MAX_NESTING} levels deep")
    try:
        fields = _RAW_OBJECT.decode(data)
    except msgspec.ValidationError:
        kind = _kind(data.lstrip(_JSON_SPACE))
        raise EventError("not_an_object", None, f"the body is {kind}, not an object") from None
    except (ValueError, RecursionError):
        raise EventError("invalid_json", None, f"the body of {len(data)} bytes is not JSON") from None
    return {name: raw for name, raw in fields.items() if bytes(raw) != b"null"}


def _nesting(data: bytes) -> int:
    """The deepest nesting of brackets and braces outside of strings."""
    depth = deepest = 0
    for byte in _JSON_STRING.sub(b"", data).translate(None, _NOT_BRACKETS):
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


def _unknown_field(name: str) -> EventError:
    if _FIELD_NAME.fullmatch(name):
        return EventError("unknown_field", name, f"a sign-in has no field {name}")
    return EventError(
        "unknown_field", None, f"a sign-in has no field with that name of {len(name)} characters"
    )


def _text(fields: Mapping[str, msgspec.Raw], name: str) -> str | None:
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return _TEXT.decode(raw)
    except msgspec.ValidationError:
        raise EventError(
            f"{name}_invalid", name, f"{name} must be a string, not {_kind(bytes(raw))}"
        ) from None
    except ValueError:
        raise EventError("invalid_json", name, f"{name} is not a string of Unicode characters") from None


def _attributes(fields: Mapping[str, msgspec.Raw]) -> dict[str, str]:
    raw = fields.get("attributes")
    if raw is None:
        return {}
    attributes = {}
    try:
        for key, value in _RAW_OBJECT.decode(raw).items():
            attributes[key] = _TEXT.decode(value)
    except msgspec.ValidationError:
        raise EventError(
            "attributes_invalid", "attributes", "attributes must map strings to strings"
        ) from None
    except (ValueError, RecursionError):
        raise EventError("invalid_json", "attributes", "attributes holds what is not Unicode text") from None
    if not are_attributes(attributes):
        raise EventError("attributes_invalid", "attributes", _attributes_detail(attributes))
    return attributes


def _attributes_detail(attributes: Mapping[str, str]) -> str:
    if len(attributes) > MAX_ATTRIBUTES:
        return f"there are {len(attributes)} attributes, at most {MAX_ATTRIBUTES} are allowed"
    return (
        f"keys may have {MAX_ATTRIBUTE_KEY_CHARACTERS} characters, values {MAX_ATTRIBUTE_VALUE_CHARACTERS}, "
        f"the longest here have {max(map(len, attributes))} and {max(map(len, attributes.values()))}"
    )


def are_attributes(attributes: Mapping[str, str]) -> bool:
    """Tells whether the map is within the limits of an event's attributes."""
    return len(attributes) <= MAX_ATTRIBUTES and all(
        len(key) <= MAX_ATTRIBUTE_KEY_CHARACTERS and len(value) <= MAX_ATTRIBUTE_VALUE_CHARACTERS
        for key, value in attributes.items()
    )


def _kind(json: bytes) -> str:
    """The JSON type of a value, by its first byte."""
    kinds = {b'"': "a string", b"{": "an object", b"[": "an array", b"t": "a boolean", b"f": "a boolean"}
    return kinds.get(json[:1], "null" if json[:1] == b"n" else "a number")


def is_userid(userid: str) -> bool:
    """Tells whether the text may be a user's id."""
    return 0 < len(userid) <= MAX_USERID_CHARACTERS and (
        userid.isprintable() or _CONTROL.search(userid) is None
    )


def is_event_id(event_id: str) -> bool:
    """Tells whether the text may be an event's id."""
    return _EVENT_ID.fullmatch(event_id) is not None


def encode(event: SigninEvent) -> bytes:
    """The canonical JSON of a sign-in: fixed order of fields, sorted attributes, absent ones left out."""
    document: dict[str, str | dict[str, str]] = {"userid": event.userid, "date": event.date}
    if event.event_id is not None:
        document["event_id"] = event.event_id
    if event.attributes:
        document["attributes"] = dict(sorted(event.attributes.items()))
    return _ENCODER.encode(document)


def message_attributes(event: SigninEvent, traceparent: str | None = None) -> dict[str, str]:
    """The Pub/Sub attributes that travel beside the canonical JSON."""
    attributes = {"event_time": event.date, "schema_version": SCHEMA_VERSION}
    if event.event_id is not None:
        attributes["event_id"] = event.event_id
    if traceparent is not None:
        attributes["traceparent"] = traceparent
    return attributes
