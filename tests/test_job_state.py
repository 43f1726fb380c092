"""The state machine over all it can meet."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.job_state import (
    DATAFLOW_STATES,
    GOALS,
    REQUESTED_ORDER,
    STATES,
    TERMINAL_STATES,
    UNRECOGNIZED,
    Action,
    Permission,
    Standing,
    Verdict,
    allowed_actions,
    is_in_transition,
    observe,
    raised,
)

states = st.sampled_from(sorted(STATES))
requested_states = st.sampled_from(REQUESTED_ORDER)
words = st.one_of(st.sampled_from(sorted(STATES)), st.just("UNKNOWN"), st.text(max_size=20))


def permission(action: Action, state: str, requested: str) -> Permission:
    return allowed_actions(Standing(state, requested))[action]


EVERYWHERE = list(itertools.product(sorted(STATES), REQUESTED_ORDER))


@given(states, requested_states, words)
def test_every_observation_has_a_transition_to_a_known_state(state: str, requested: str, seen: str) -> None:
    after = observe(state, requested, seen)
    assert after.state in STATES
    assert after.changed == (after.state != state)
    assert after.ended == (after.state in TERMINAL_STATES)
    assert after.send in (None, "DRAINED", "CANCELLED")


@given(st.sampled_from(sorted(TERMINAL_STATES)), requested_states, words)
def test_terminal_states_absorb_and_ask_for_nothing(state: str, requested: str, seen: str) -> None:
    after = observe(state, requested, seen)
    assert (after.state, after.changed, after.send) == (state, False, None)


@given(st.sampled_from(sorted(STATES - TERMINAL_STATES)), requested_states, words)
def test_a_living_job_takes_the_word_that_dataflow_says(state: str, requested: str, seen: str) -> None:
    after = observe(state, requested, seen).state
    if seen in ("", "UNKNOWN"):
        assert after == state
    else:
        assert after == (seen if seen in DATAFLOW_STATES else UNRECOGNIZED)


@given(states, requested_states, words)
def test_only_what_was_asked_for_is_sent(state: str, requested: str, seen: str) -> None:
    sent = observe(state, requested, seen).send
    assert sent is None or sent == requested
    assert requested != "RUNNING" or sent is None


@given(requested_states, st.lists(requested_states))
def test_the_requested_state_never_falls(first: str, wanted: list[str]) -> None:
    current = first
    for word in wanted:
        following = raised(current, word)
        assert REQUESTED_ORDER.index(following) == max(map(REQUESTED_ORDER.index, (current, word)))
        current = following


@pytest.mark.parametrize("state", ["LAUNCHING", "QUEUED", "PENDING", "STOPPED", "PAUSED", UNRECOGNIZED])
def test_a_drain_is_not_sent_before_the_job_runs(state: str) -> None:
    assert observe(state, "DRAINED", "").send is None
    assert observe(state, "DRAINED", "RUNNING").send == "DRAINED"


@pytest.mark.parametrize("seen", ["QUEUED", "PENDING", "RUNNING", "DRAINING", "PAUSED", "never heard of it"])
def test_a_cancel_is_sent_whatever_the_job_does(seen: str) -> None:
    assert observe("RUNNING", "CANCELLED", seen).send == "CANCELLED"


@pytest.mark.parametrize("seen", ["CANCELLING", "CANCELLED", "FAILED", "DRAINED"])
def test_a_cancel_that_is_under_way_or_too_late_is_not_sent(seen: str) -> None:
    assert observe("RUNNING", "CANCELLED", seen).send is None


def test_every_action_has_a_verdict_everywhere_and_a_reason_where_it_is_not_allowed() -> None:
    for state, requested in EVERYWHERE:
        for given_permission in allowed_actions(Standing(state, requested)).values():
            assert bool(given_permission.reason) == (given_permission.verdict is not Verdict.ALLOWED)


def test_an_ended_job_takes_nothing_but_what_it_came_to() -> None:
    for state, requested in EVERYWHERE:
        if state in TERMINAL_STATES:
            for action, goal in GOALS.items():
                expected = Verdict.ALREADY if state == goal else Verdict.REFUSED
                assert permission(action, state, requested).verdict is expected


def test_a_living_job_can_always_be_cancelled() -> None:
    for state, requested in EVERYWHERE:
        if state not in TERMINAL_STATES:
            assert permission("cancel", state, requested).verdict is not Verdict.REFUSED


def test_a_drain_is_refused_after_a_cancel_and_in_states_nobody_knows() -> None:
    assert permission("drain", "RUNNING", "CANCELLED").verdict is Verdict.REFUSED
    assert permission("drain", "CANCELLING", "RUNNING").verdict is Verdict.REFUSED
    assert permission("drain", UNRECOGNIZED, "RUNNING").verdict is Verdict.REFUSED
    assert permission("drain", "LAUNCHING", "RUNNING").verdict is Verdict.ALLOWED


def test_a_quiet_job_is_not_in_transition() -> None:
    assert not is_in_transition("RUNNING", "RUNNING")
    assert is_in_transition("RUNNING", "DRAINED")
    assert is_in_transition("PENDING", "RUNNING")
    assert not any(is_in_transition(state, "CANCELLED") for state in TERMINAL_STATES)
