"""A dead letter as the table keeps it, which one it is, and the message that it becomes again."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from transforms.bigquery_rows import is_cut
from transforms.replay import replay_attributes

KEY_CHARACTERS = 32
_MOST_ATTRIBUTES = 100  # of a message, says Pub/Sub
_REPLAY_ATTRIBUTES = 3
# The reasons whose letters hold no more than could be read of a message.
_TORN = frozenset({"file_corrupt"})
_encode = msgspec.json.Encoder().encode


class Filters(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which dead letters; None is no limit. `since` is the first moment of `failed_at`, `until` the end."""

    reason: str | None = None
    stage: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    event_id: str | None = None
    message_id: str | None = None


class Position(NamedTuple):
    """A place in the order of `failed_at`: after `skip` letters of the moment `at`."""

    at: datetime
    skip: int


@dataclass(frozen=True, slots=True)
class Letter:
    """One row of the dead-letter table, whole."""

    failed_at: datetime
    stage: str
    reason: str
    detail: str
    payload: bytes
    attributes: Mapping[str, str]
    message_id: str | None
    publish_time: datetime | None
    event_id: str | None

    @property
    def key(self) -> str:
        """Names the letter: the same for each row that the same failed message has in the table.

        A bundle that was tried twice leaves two rows of one message. A letter without a message id, from a
        file or of an older pipeline, is told by what it holds.
        """
        published = self.publish_time.isoformat() if self.publish_time else ""
        identity: list[Any] = [self.message_id, published]
        if not self.message_id:
            content = hashlib.sha256(self.payload).hexdigest()
            identity = [self.event_id, published, sorted(self.attributes.items()), content]
        return hashlib.sha256(_encode(identity)).hexdigest()[:KEY_CHARACTERS]

    @property
    def unreplayable(self) -> bool:
        """Whether the message cannot be made again: it is not whole, or Pub/Sub would not take it."""
        is_whole = self.reason not in _TORN and not is_cut(self.detail)
        return not is_whole or len(self.attributes) > _MOST_ATTRIBUTES - _REPLAY_ATTRIBUTES

    def message(self, replay_id: str) -> tuple[bytes, dict[str, str]]:
        """The payload as it was, and the attributes of the replay."""
        attributes = dict(self.attributes)
        if self.event_id and "event_id" not in attributes:
            attributes["event_id"] = self.event_id  # a letter of the stage `write` may know only this
        return self.payload, replay_attributes(attributes, self.key, replay_id)


def advanced(after: Position | None, moments: Sequence[datetime]) -> Position | None:
    """The position behind rows of these moments, which follow `after`; None where there are none."""
    if not moments:
        return None
    last = moments[-1]
    skip = sum(moment == last for moment in moments)
    if after and after.at == last:
        skip += after.skip
    return Position(last, skip)


def chosen(
    letters: Sequence[Letter], keys: Sequence[str | None], known: Container[str], most: int
) -> tuple[Sequence[Letter], dict[str, Letter]]:
    """The letters up to that with which `most` are to be published, and these by their keys.

    `keys` has None where a letter is unreplayable; those that are `known` were published already.
    """
    fresh: dict[str, Letter] = {}
    for count, (letter, key) in enumerate(zip(letters, keys, strict=True)):
        if len(fresh) >= most:
            return letters[:count], fresh
        if key is not None and key not in known:
            fresh.setdefault(key, letter)
    return letters, fresh


def letter_of(row: Mapping[str, Any]) -> Letter:
    """The letter that BigQuery's client returned as `row`."""
    return Letter(
        failed_at=row["failed_at"],
        stage=row["stage"],
        reason=row["reason"],
        detail=row["detail"] or "",
        payload=row["payload"] or b"",
        attributes=attributes_of(row),
        message_id=row["message_id"],
        publish_time=row["publish_time"],
        event_id=row["event_id"],
    )


def attributes_of(row: Mapping[str, Any]) -> dict[str, str]:
    return {record["key"]: record["value"] or "" for record in row["attributes"] or ()}
