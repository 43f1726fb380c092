"""Many messages decoded together, field by field: what `signin_event.decode` gives for each, for less.

Only what is beyond doubt is decided here, which is nearly all; the rest is left to `decode`, one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Annotated, NamedTuple

import msgspec

from transforms import signin_event, timestamps

_PIECE = 16  # messages that are decoded together where a larger number of them cannot be
_JSON_SPACE = b" \t\n\r"
_EVENT_IDS = re.compile(r"[A-Za-z0-9._:-]*")

_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=signin_event.MAX_USERID_CHARACTERS)]
_Key = Annotated[str, msgspec.Meta(max_length=signin_event.MAX_ATTRIBUTE_KEY_CHARACTERS)]
_Value = Annotated[str, msgspec.Meta(max_length=signin_event.MAX_ATTRIBUTE_VALUE_CHARACTERS)]
_Attributes = Annotated[dict[_Key, _Value], msgspec.Meta(max_length=signin_event.MAX_ATTRIBUTES)]


class _Event(msgspec.Struct, gc=False):
    """As much of the contract as msgspec checks by itself."""

    userid: _Id
    date: str
    event_id: _Id | None = None
    attributes: _Attributes | None = None


class _StrictEvent(_Event, forbid_unknown_fields=True, gc=False):
    """The same without fields that are passed over, in which anything may hide."""


class Columns(NamedTuple):
    """The fields of messages, in their order.

    At the indexes of `doubtful` they say nothing: `signin_event.decode` has to judge these messages.
    """

    userids: list[str]
    dates: list[str]  # canonical
    event_ids: list[str | None]
    attributes: list[dict[str, str] | None]
    doubtful: set[int]


_decode_lines: Callable[[bytes], list[_Event]] = msgspec.json.Decoder(_Event).decode_lines
_decode_strict_lines: Callable[[bytes], Sequence[_Event]] = msgspec.json.Decoder(_StrictEvent).decode_lines
_ends = itemgetter(0, -1)
_BRACES = {tuple(b"{}")}
_DOUBTFUL = _Event("-", "2017-10-17T20:57:17.338320Z")


def decode_together(payloads: Sequence[bytes]) -> Columns:
    """The sign-ins that these messages hold. Never raises, whatever the bytes are."""
    doubtful: set[int] = set()
    events = _decode(payloads) or _decode_pieces(payloads, doubtful)
    userids = [event.userid for event in events]
    event_ids = [event.event_id for event in events]
    attributes = [event.attributes for event in events]
    dates = _dates([event.date for event in events], doubtful)
    if not "".join(userids).isprintable():
        doubtful.update(i for i, userid in enumerate(userids) if not signin_event.is_userid(userid))
    if not _EVENT_IDS.fullmatch("".join(filter(None, event_ids))):
        doubtful.update(i for i, each in enumerate(event_ids) if not _EVENT_IDS.fullmatch(each or ""))
    return Columns(userids, dates, event_ids, attributes, doubtful)


def _decode_pieces(payloads: Sequence[bytes], doubtful: set[int]) -> Sequence[_Event]:
    """One event for each message; adds the indexes of those that are not certain."""
    events: list[_Event] = []
    for start in range(0, len(payloads), _PIECE):
        piece = payloads[start : start + _PIECE]
        decoded = _decode(piece)
        if decoded is None:
            doubtful.update(range(start, start + len(piece)))
            decoded = [_DOUBTFUL] * len(piece)
        events += decoded
    return events


def _decode(payloads: Sequence[bytes]) -> Sequence[_Event] | None:
    """One event for each message; None where that is not certain."""
    # msgspec takes any white space between values, none at all, and values that go on behind a line feed:
    # messages could make up for each other, one that ends too early for one that is two. Not where each
    # begins and ends with a brace: no string holds a line feed, and outside of strings "}" and "{" never
    # follow each other within a value. So each message is whole values, and as many as messages: one each.
    if not _are_braced(payloads):
        payloads = [payload.strip(_JSON_SPACE) for payload in payloads]
        if not _are_braced(payloads):
            return None
    lines = b"\n".join(payloads)
    try:
        events = _decode_strict_lines(lines)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        events = _decode_loosely(lines, payloads)
    return events if len(events) == len(payloads) else None


def _are_braced(payloads: Sequence[bytes]) -> bool:
    try:
        return set(map(_ends, payloads)) == _BRACES
    except IndexError:  # one is empty
        return False


def _decode_loosely(lines: bytes, payloads: Sequence[bytes]) -> Sequence[_Event]:
    """The events where there are fields that a sign-in does not have; nothing where something is wrong."""
    # Each has one bracket. Only where there are many more of them one message may have too many.
    if lines.count(b"{") + lines.count(b"[") >= len(payloads) + signin_event.MAX_NESTING and any(
        payload.count(b"{") + payload.count(b"[") > signin_event.MAX_NESTING for payload in payloads
    ):
        return ()
    try:
        if not lines.isascii():
            lines.decode()  # msgspec does not look inside the values that it skips
        return _decode_lines(lines)
    except (ValueError, RecursionError):
        return ()


def _dates(texts: list[str], doubtful: set[int]) -> list[str]:
    """The canonical dates; adds the indexes of those that are none."""
    together = timestamps.canonical_together(texts)
    if together is not None:
        return together
    dates = []
    for index, text in enumerate(texts):
        try:
            dates.append(timestamps.canonical(text))
        except ValueError:
            dates.append("")
            doubtful.add(index)
    return dates
