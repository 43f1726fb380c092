"""The W3C trace context as text: how a trace travels in headers and in message attributes.

https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
MAX_TRACESTATE_BYTES = 512
# What a span links to at most: OpenTelemetry drops the rest.
MAX_CONTEXTS = 128

# The trace that the work of this task belongs to: the caller's own, or that of our span where there is one.
current_traceparent: ContextVar[str] = ContextVar("current_traceparent", default="")

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
# A list of `key=value`, without what the standard forbids in values: control characters, `,` and `=`.
_TRACESTATE_MEMBER = rb"[ \t]*(?:[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{1,256})?[ \t]*"
_TRACESTATE = re.compile(rb"%s(?:,%s)*+" % (_TRACESTATE_MEMBER, _TRACESTATE_MEMBER))
_SAMPLED = 1
_ODD = frozenset("13579bdf")  # the last digit of flags with _SAMPLED among them


class TraceContext(NamedTuple):
    """A place in a trace; the ids are hexadecimal."""

    trace_id: str
    span_id: str
    sampled: bool


def parse(traceparent: str) -> TraceContext | None:
    """The context that the text names, None where it is not well formed."""
    found = _TRACEPARENT.fullmatch(traceparent.encode("ascii", "replace"))
    if found is None:
        return None
    trace_id, span_id, flags = (part.decode() for part in found.groups())
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


def attributes_of(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    """The attributes by which a caller's trace context travels on; none where it is not well formed."""
    parent = headers.get(b"traceparent")
    if not parent or not _TRACEPARENT.fullmatch(parent):
        return {}
    attributes = {TRACEPARENT: parent.decode()}
    state = headers.get(b"tracestate")
    if state and len(state) <= MAX_TRACESTATE_BYTES and _TRACESTATE.fullmatch(state):
        attributes[TRACESTATE] = state.decode()
    return attributes


def remote(place: TraceContext) -> Any:
    """OpenTelemetry's own form of a place in another process."""
    from opentelemetry.trace import SpanContext, TraceFlags

    flags = TraceFlags(TraceFlags.SAMPLED if place.sampled else TraceFlags.DEFAULT)
    return SpanContext(int(place.trace_id, 16), int(place.span_id, 16), is_remote=True, trace_flags=flags)


def sampled(traceparents: Iterable[str | None]) -> dict[str, tuple[TraceContext, int]]:
    """The sampled contexts among the texts, each with how often it is there; at most MAX_CONTEXTS of them."""
    counts: dict[str, int] = {}
    for text in traceparents:
        if text and text[-1] in _ODD:
            counts[text] = counts.get(text, 0) + 1
    found: dict[str, tuple[TraceContext, int]] = {}
    for text, count in counts.items():
        context = parse(text)
        if context and context.sampled:
            found[text] = (context, count)
            if len(found) == MAX_CONTEXTS:
                break
    return found
