"""A dead letter published again: its message must not count as a copy of the first, yet keep its event id.

The deduplication by `id_label` remembers the attribute `event_id`, so a replay carries a fresh one there,
and the original beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

EVENT_ID_ATTRIBUTE = "event_id"
ORIGINAL_EVENT_ID_ATTRIBUTE = "original_event_id"
REPLAY_OF_ATTRIBUTE = "replay_of"


def event_id_of(attributes: Mapping[str, str]) -> str | None:
    """The event id that a message's attributes name, whether it is published for the first time or again.

    A replayed letter that never had an id gets one from its key: copies of it can be told by it.
    """
    key = attributes.get(REPLAY_OF_ATTRIBUTE)
    if not key:
        return attributes.get(EVENT_ID_ATTRIBUTE)
    return attributes.get(ORIGINAL_EVENT_ID_ATTRIBUTE) or f"letter:{key}"


def replay_attributes(attributes: Mapping[str, str], letter_key: str, replay_id: str) -> dict[str, str]:
    """The attributes under which a dead letter with `attributes` is published again.

    The same for each copy that one replay publishes, and different for each replay.
    """
    replayed = {name: value for name, value in attributes.items() if not name.startswith("goog")}
    if REPLAY_OF_ATTRIBUTE not in attributes and (original := attributes.get(EVENT_ID_ATTRIBUTE)):
        replayed[ORIGINAL_EVENT_ID_ATTRIBUTE] = original
    replayed[REPLAY_OF_ATTRIBUTE] = letter_key
    replayed[EVENT_ID_ATTRIBUTE] = f"replay:{replay_id}:{letter_key}"
    return replayed
