"""Which messages were published twice: Dataflow's `id_label`, on one machine."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

WINDOW_SECONDS = 600.0  # as long as Dataflow remembers
MAX_IDS = 200_000


class CommittedIds:
    """The identifying attributes of messages whose batch succeeded, bounded by age and number. Thread-safe.

    Only those: a message of a failed batch must be taken again when it is delivered again. Which of two
    batches at once commits an id is not known before one of them has ended, so that the other waits.
    """

    def __init__(self, attribute: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._attribute = attribute
        self._clock = clock
        self._ids: OrderedDict[str, float] = OrderedDict()
        self._claimed: set[str] = set()
        self._settled = threading.Condition()

    def claim(self, messages: Sequence[Any]) -> tuple[Sequence[Any], Sequence[str]]:
        """The messages that are not repetitions, and their ids, which are the caller's until `settle`.

        Whoever claims holds nothing from before. Waits while another holds one of the ids.
        """
        if not self._attribute:
            return messages, ()
        named = [(message.attributes.get(self._attribute), message) for message in messages]
        with self._settled:
            while not self._claimed.isdisjoint(identity for identity, _ in named):
                self._settled.wait()
            self._expire()
            fresh: list[Any] = []
            seen: dict[str, None] = {}
            for identity, message in named:
                if identity:
                    if identity in seen or identity in self._ids:
                        continue
                    seen[identity] = None
                fresh.append(message)
            self._claimed.update(seen)
        return fresh, list(seen)

    def settle(self, ids: Iterable[str], *, committed: bool) -> None:
        """Lets go of claimed ids; remembers them if their messages are in BigQuery."""
        with self._settled:
            self._claimed.difference_update(ids)
            if committed:
                self._ids.update(dict.fromkeys(ids, self._clock()))
            while len(self._ids) > MAX_IDS:
                self._ids.popitem(last=False)
            self._settled.notify_all()

    def _expire(self) -> None:
        oldest_kept = self._clock() - WINDOW_SECONDS
        while self._ids and next(iter(self._ids.values())) < oldest_kept:
            self._ids.popitem(last=False)
