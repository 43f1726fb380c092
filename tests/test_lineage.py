"""Which attempt stands for a job, over all that its attempts may be."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.job_state import STATES, TERMINAL_STATES
from service.lineage import WORKING_STATES, Link, pending_attempt, restart_pause, standing_attempt

OPEN_STATES = sorted(STATES - TERMINAL_STATES)


@st.composite
def lineages(draw: st.DrawFn) -> tuple[list[Link], int]:
    """Attempts by number, each open or ended, and the one that stood for the job until now."""
    links = []
    for number in range(1, draw(st.integers(1, 5)) + 1):
        is_open = draw(st.booleans())
        state = draw(st.sampled_from(OPEN_STATES if is_open else sorted(TERMINAL_STATES)))
        replaces = draw(st.integers(1, number - 1)) if number > 1 else None
        is_update, is_known = number > 1 and draw(st.booleans()), draw(st.booleans())
        links.append(Link(number, state, is_open, is_update, is_known, replaces))
    return links, draw(st.integers(1, len(links)))


@given(lineages())
def test_a_job_stands_on_an_open_attempt_as_long_as_there_is_one(given_: tuple[list[Link], int]) -> None:
    links, current = given_
    standing = next(link for link in links if link.number == standing_attempt(links, current))
    assert standing.is_open == any(link.is_open for link in links)


@given(lineages())
def test_the_answer_stays_the_same_when_it_is_asked_for_again(given_: tuple[list[Link], int]) -> None:
    links, current = given_
    standing = standing_attempt(links, current)
    assert standing_attempt(links, standing) == standing


@given(lineages())
def test_an_attempt_that_stands_gives_way_only_to_one_that_works(given_: tuple[list[Link], int]) -> None:
    links, current = given_
    now = {link.number: link for link in links}
    standing = standing_attempt(links, current)
    if standing != current and now[current].is_open:
        assert now[standing].state in WORKING_STATES
        assert standing > current


@given(lineages())
def test_what_is_pending_is_open_and_newer(given_: tuple[list[Link], int]) -> None:
    links, current = given_
    pending = pending_attempt(links, current)
    newer = [link.number for link in links if link.is_open and link.number > current]
    assert pending == max(newer, default=None)


@pytest.mark.parametrize(
    ("old", "new", "is_known", "standing"),
    [
        ("UPDATED", "FAILED", True, 2),  # it had taken over before it failed
        ("UPDATED", "DRAINED", True, 2),
        ("DRAINED", "FAILED", True, 1),  # it never took over
        ("CANCELLED", "REJECTED", False, 1),
        ("UPDATED", "REJECTED", False, 1),  # whatever replaced the old one, it was not this
        ("CANCELLED", "CANCELLED", True, 2),
    ],
)
def test_an_ended_job_is_told_by_the_last_attempt_that_took_over(
    old: str, new: str, is_known: bool, standing: int
) -> None:
    links = [
        Link(1, old, is_open=False),
        Link(2, new, is_open=False, is_update=True, is_known=is_known, replaces=1),
    ]
    assert standing_attempt(links, 1) == standing_attempt(links, 2) == standing


def test_the_pause_before_a_restart_grows_to_ten_minutes() -> None:
    pauses = [restart_pause(restarts) for restarts in range(12)]
    assert pauses[0] == timedelta(seconds=30)
    assert pauses == sorted(pauses)
    assert pauses[-1] == timedelta(minutes=10)
