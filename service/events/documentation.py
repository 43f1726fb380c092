"""What OpenAPI says of the event routes: the schema of a sign-in, headers, and every answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from service import errors
from service.problems import responses
from transforms import signin_event

NOT_JSON = frozenset({"empty_body", "invalid_utf8", "invalid_json"})

SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Signin",
    "required": ["userid", "date"],
    "additionalProperties": False,
    "properties": {
        "userid": {
            "type": "string",
            "minLength": 1,
            "maxLength": signin_event.MAX_USERID_CHARACTERS,
            "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$",
        },
        "date": {
            "type": "string",
            "format": "date-time",
            "description": "RFC 3339; without an offset it means UTC",
        },
        "event_id": {
            "type": ["string", "null"],
            "pattern": "^[A-Za-z0-9._:-]{1,128}$",
            "description": "Equal for all copies of one event; if absent, Idempotency-Key or a new UUIDv7",
        },
        "attributes": {
            "type": ["object", "null"],
            "maxProperties": signin_event.MAX_ATTRIBUTES,
            "propertyNames": {"maxLength": signin_event.MAX_ATTRIBUTE_KEY_CHARACTERS},
            "additionalProperties": {
                "type": "string",
                "maxLength": signin_event.MAX_ATTRIBUTE_VALUE_CHARACTERS,
            },
        },
    },
}
EXAMPLE = {"userid": "93234234", "date": "2017-10-17T20:57:17.338320"}
HEADERS = {
    "traceparent": "W3C trace context; travels with the message",
    "tracestate": "Travels with a valid traceparent, up to 512 characters",
    "X-Request-ID": "Travels with the message as `request_id` and comes back; if absent, a new one",
}
_ENCODING = "`gzip` or `zstd`, as the body is packed; its limit holds for the unpacked bytes too"
# Names of encodings have no case; `x-gzip` is an old one, and an empty header is as good as none.
_ENCODINGS = "^(([Xx]-)?[Gg][Zz][Ii][Pp]|[Zz][Ss][Tt][Dd]|[Ii][Dd][Ee][Nn][Tt][Ii][Tt][Yy])?$"
# What both routes may answer before or after they look at the events.
PROBLEMS: tuple[type[errors.ProblemError], ...] = (
    errors.MalformedBodyError,
    errors.InvalidEncodingError,
    errors.BodyTimeoutError,
    errors.BodyTooLargeError,
    errors.UnsupportedMediaTypeError,
    errors.HeadersTooLargeError,
    errors.InvalidEventError,
    errors.PublishRefusedError,
    errors.PublishUnavailableError,
    errors.PublishOverloadedError,
    errors.OutboxFullError,
    errors.DatabaseUnavailableError,
    errors.BodiesOverloadedError,
    errors.TooManyConnectionsError,
    errors.ShuttingDownError,
)


def reasons(codes: Iterable[str]) -> str:
    """The sentences of the contract's reason codes."""
    return " ".join(
        f"`{code}`: {signin_event.REASONS[code]}" for code in signin_event.REASONS if code in codes
    )


def answers(*more: type[errors.ProblemError]) -> dict[int | str, dict[str, Any]]:
    """The errors of an event route: `PROBLEMS`, `more`, and the reason codes of what is not a sign-in."""
    found = responses(*PROBLEMS, *more)
    for status, codes in ((400, NOT_JSON), (422, signin_event.REASONS.keys() - NOT_JSON)):
        found[status]["description"] += f" {reasons(codes)}"
    return found


def request_extras(content: dict[str, Any], idempotency_key: str, longest_key: int) -> dict[str, Any]:
    """The headers and the body of an event route, which FastAPI cannot know; `longest_key` in characters."""
    key = {"type": "string", "pattern": f"^[A-Za-z0-9._:-]{{1,{longest_key}}}$"}
    parameters = [
        _header("Idempotency-Key", idempotency_key, key),
        _header("Content-Encoding", _ENCODING, {"type": "string", "pattern": _ENCODINGS}),
        *(_header(name, text, {"type": "string"}) for name, text in HEADERS.items()),
    ]
    return {"parameters": parameters, "requestBody": {"required": True, "content": content}}


def _header(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}
