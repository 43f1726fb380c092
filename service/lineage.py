"""Which of a job's attempts stands for it, as a pure function: the lineage of updates and restarts.

An update leads to a second Dataflow job beside the first. The newer one stands for the job from when it
works, or from when the older one has ended; where it fails, the older one goes on. A job ends only when
none of its attempts is open, so nothing that may live is let go of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from service.job_state import ENDING_STATES, STEADY_STATES

WORKING_STATES = (STEADY_STATES | ENDING_STATES) - {"RESOURCE_CLEANING_UP"}

FIRST_RESTART_AFTER = timedelta(seconds=30)
LONGEST_RESTART_PAUSE = timedelta(minutes=10)
# An attempt that worked for so long before it failed begins the count of restarts anew.
FORGIVEN_AFTER = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Link:
    """One attempt of a job, as far as its place in the lineage goes; `is_known` says that it has an id."""

    number: int
    state: str
    is_open: bool
    is_update: bool = False
    is_known: bool = True
    replaces: int | None = None


def standing_attempt(links: Sequence[Link], current: int) -> int:
    """The number of the attempt that stands for the job, where `current` did until now.

    `links` are all attempts of the job, at least the current one, each number once.
    """
    by_number = {link.number: link for link in links}
    is_open = [link for link in links if link.is_open]
    if not is_open:
        return _last_word(by_number)
    works = [link for link in is_open if link.number > current and link.state in WORKING_STATES]
    if works:
        return max(link.number for link in works)
    if by_number[current].is_open:
        return current
    return max(link.number for link in is_open)


def _last_word(links: dict[int, Link]) -> int:
    """The attempt that tells how an ended job ended: not an update that never took the place of another."""
    link = links[max(links)]
    while link.is_update and link.replaces in links:
        replaced = links[link.replaces]
        if link.is_known and (link.state != "FAILED" or replaced.state == "UPDATED"):
            break
        link = replaced
    return link.number


def pending_attempt(links: Sequence[Link], current: int) -> int | None:
    """The number of the attempt that is to replace `current`, while it is open."""
    numbers = [link.number for link in links if link.is_open and link.number > current]
    return max(numbers, default=None)


def restart_pause(restarts: int) -> timedelta:
    """How long to wait before the next restart, after so many."""
    doublings: int = 2 ** min(restarts, 10)
    return min(FIRST_RESTART_AFTER * doublings, LONGEST_RESTART_PAUSE)
