"""Many messages decoded together, field by field: what `signin_event.decode` gives for each, for less.

Each is parsed by itself; what is in a field is checked over all of them at once. Only what is beyond doubt
is decided here, which is nearly all; the rest is left to `decode`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import msgspec

from transforms import signin_event, timestamps

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


_decode: Callable[[bytes], _Event] = msgspec.json.Decoder(_StrictEvent).decode
_decode_loosely: Callable[[bytes], _Event] = msgspec.json.Decoder(_Event).decode
_DOUBTFUL = _Event("-", "2017-10-17T20:57:17.338320Z")


def decode_together(payloads: Sequence[bytes]) -> Columns:
    """The sign-ins that these messages hold. Never raises, whatever the bytes are."""
    doubtful: set[int] = set()
    try:
        events = list(map(_decode, payloads))
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        events = [_event(index, payload, doubtful) for index, payload in enumerate(payloads)]
    userids = [event.userid for event in events]
    event_ids = [event.event_id for event in events]
    attributes = [event.attributes for event in events]
    dates = _dates([event.date for event in events], doubtful)
    if not "".join(userids).isprintable():
        doubtful.update(i for i, userid in enumerate(userids) if not signin_event.is_userid(userid))
    if not _EVENT_IDS.fullmatch("".join(filter(None, event_ids))):
        doubtful.update(i for i, each in enumerate(event_ids) if not _EVENT_IDS.fullmatch(each or ""))
    return Columns(userids, dates, event_ids, attributes, doubtful)


def _event(index: int, payload: bytes, doubtful: set[int]) -> _Event:
    """One event; one that is not certain is among `doubtful` then."""
    try:
        return _decode(payload)
    except (ValueError, RecursionError):
        pass
    # There may be fields that a sign-in does not have. msgspec does not look inside the values that it skips.
    try:
        if payload.count(b"{") + payload.count(b"[") <= signin_event.MAX_NESTING:
            payload.decode()
            return _decode_loosely(payload)
    except (ValueError, RecursionError):
        pass
    doubtful.add(index)
    return _DOUBTFUL


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
