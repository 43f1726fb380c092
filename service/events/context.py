"""What the headers of a request say of its events: their ids, their trace, and the form of the body."""

from __future__ import annotations

import re
from collections.abc import Mapping

from service.errors import InvalidEventError
from service.logs import current_request_id
from transforms import signin_event

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
# A list of `key=value`, without what the standard forbids in values: control characters, `,` and `=`.
_TRACESTATE_MEMBER = rb"[ \t]*(?:[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{1,256})?[ \t]*"
_TRACESTATE = re.compile(rb"%s(?:,%s)*+" % (_TRACESTATE_MEMBER, _TRACESTATE_MEMBER))
MAX_TRACESTATE_BYTES = 512


def media_type(headers: Mapping[bytes, bytes]) -> bytes:
    """The content type without its parameters, in lower case; empty where there is none."""
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower()


def travelling(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    """The attributes that every message of this request carries: its id and the caller's trace context.

    A trace context that is not well formed is left out, as the standard says.
    https://www.w3.org/TR/trace-context/
    """
    attributes = {"request_id": current_request_id.get()}
    parent = headers.get(b"traceparent")
    if parent and _TRACEPARENT.fullmatch(parent):
        attributes["traceparent"] = parent.decode()
        state = headers.get(b"tracestate")
        if state and len(state) <= MAX_TRACESTATE_BYTES and _TRACESTATE.fullmatch(state):
            attributes["tracestate"] = state.decode()
    return attributes


def idempotency_key(headers: Mapping[bytes, bytes], suffix: str = "") -> str | None:
    """The caller's Idempotency-Key, if there is one. Raises InvalidEventError where it can be no event_id.

    `suffix` is the longest that will be put behind it.
    """
    found = headers.get(b"idempotency-key")
    if found is None:
        return None
    key = found.decode("latin-1")
    if not found or not signin_event.is_event_id(key + suffix):
        raise InvalidEventError(
            f"Idempotency-Key must be 1 to {128 - len(suffix)} of A-Z a-z 0-9 . _ : -",
            code="event_id_invalid",
            members={"field": "Idempotency-Key"},
        )
    return key
