"""What the headers of a request say of its events: their ids and their trace."""

from __future__ import annotations

from collections.abc import Mapping

from service.errors import InvalidEventError
from service.logs import current_request_id
from transforms import signin_event, trace_context


def travelling(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    """The attributes that every message of this request carries: its id and the caller's trace context.

    A trace context that is not well formed is left out, as the standard says.
    """
    attributes = trace_context.attributes_of(headers)
    attributes["request_id"] = current_request_id.get()
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
