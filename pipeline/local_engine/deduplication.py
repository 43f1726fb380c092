"""Which messages were published twice: Dataflow's `id_label`, on one machine."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

WINDOW_SECONDS = 600.0  # as long as Dataflow remembers
MAX_IDS = 200_000


class CommittedIds:
    """The identifying attributes of messages whose batch succeeded, bounded by age and number.

    Only those: a message of a failed batch must be taken again when it is delivered again.
    """

    def __init__(self, attribute: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._attribute = attribute
        self._clock = clock
        self._ids: OrderedDict[str, float] = OrderedDict()

    def split(self, messages: Iterable[Any]) -> tuple[list[Any], list[str]]:
        """The messages that are not repetitions, and their ids, which `add` takes when they are committed."""
        if not self._attribute:
            return list(messages), []
        self._expire()
        fresh: list[Any] = []
        seen: dict[str, None] = {}
        for message in messages:
            identity = message.attributes.get(self._attribute)
            if identity:
                if identity in seen or identity in self._ids:
                    continue
                seen[identity] = None
            fresh.append(message)
        return fresh, list(seen)

    def add(self, ids: Iterable[str]) -> None:
        """Remembers ids whose messages are in BigQuery."""
        now = self._clock()
        for identity in ids:
            self._ids[identity] = now
        while len(self._ids) > MAX_IDS:
            self._ids.popitem(last=False)

    def _expire(self) -> None:
        oldest_kept = self._clock() - WINDOW_SECONDS
        while self._ids and next(iter(self._ids.values())) < oldest_kept:
            self._ids.popitem(last=False)
