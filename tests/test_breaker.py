"""The circuit breaker alone, with a clock that the test sets."""

from __future__ import annotations

import pytest

from service.breaker import Breaker


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker(failures=3, open_seconds=1.0, probe_seconds=2.0, clock=clock)


def opened(breaker):
    while breaker.is_closed:
        breaker.failed("UNAVAILABLE", breaker.now())
    return breaker


def test_it_is_closed_at_first_and_needs_no_probe(breaker):
    assert breaker.is_closed
    assert breaker.seconds_to_probe() == 0
    assert not breaker.probe()


def test_failures_in_a_row_open_it_and_the_last_one_is_told(breaker):
    assert [breaker.failed("UNAVAILABLE", breaker.now()) for _ in range(4)] == [False, False, True, False]
    assert (breaker.state, breaker.cause, breaker.opened) == ("open", "UNAVAILABLE", 1)


def test_a_success_in_between_starts_the_count_anew(breaker):
    for _ in range(10):
        breaker.failed("UNAVAILABLE", breaker.now())
        breaker.failed("UNAVAILABLE", breaker.now())
        assert not breaker.succeeded(breaker.now())
    assert breaker.is_closed


def test_one_call_that_hangs_opens_it(breaker):
    assert breaker.failed("DEADLINE_EXCEEDED", breaker.now(), hung=True)


def test_a_probe_passes_after_the_pause_and_only_one(breaker, clock):
    opened(breaker)
    assert not breaker.probe()
    clock.now += 0.6
    assert breaker.seconds_to_probe() == pytest.approx(0.4)
    clock.now += 0.4
    assert [breaker.probe(), breaker.probe()] == [True, False]
    assert breaker.state == "half_open"


def test_a_probe_that_succeeds_closes_it(breaker, clock):
    opened(breaker)
    clock.now += 1
    assert breaker.probe()
    assert breaker.succeeded(breaker.now())
    assert (breaker.state, breaker.cause) == ("closed", "")
    assert [breaker.failed("INTERNAL", breaker.now()), breaker.failed("INTERNAL", breaker.now())] == [
        False,
        False,
    ]


def test_a_probe_that_fails_opens_it_for_another_pause(breaker, clock):
    opened(breaker)
    clock.now += 1
    assert breaker.probe()
    assert not breaker.failed("ABORTED", breaker.now())
    assert (breaker.state, breaker.cause, breaker.opened) == ("open", "ABORTED", 1)
    assert not breaker.probe()
    clock.now += 1
    assert breaker.probe()


def test_a_probe_of_which_nothing_is_heard_makes_way_for_the_next(breaker, clock):
    opened(breaker)
    clock.now += 1
    assert breaker.probe()
    clock.now += 1.9
    assert not breaker.probe()
    clock.now += 0.1
    assert breaker.probe()


def test_a_success_of_a_call_that_began_before_the_outage_does_not_close_it(breaker):
    opened(breaker)
    assert not breaker.succeeded(breaker.now())
    assert breaker.state == "open"


def test_a_call_that_began_before_one_that_succeeded_and_fails_later_is_old_news(breaker, clock):
    began = clock()
    opened(breaker)
    clock.now += 1.1
    assert breaker.probe()
    assert breaker.succeeded(breaker.now())
    clock.now += 3.0
    assert not breaker.failed("DEADLINE_EXCEEDED", began, hung=True)
    assert breaker.is_closed
    assert breaker.failed("DEADLINE_EXCEEDED", breaker.now(), hung=True)


def probes(breaker, clock):
    """An older probe that has made way for a newer one; when each began."""
    opened(breaker)
    clock.now += 1.0
    assert breaker.probe()
    older = breaker.now()
    clock.now += 2.0
    assert breaker.probe()
    return older, breaker.now()


def test_an_older_probe_that_fails_while_the_newest_is_under_way_does_not_outlast_its_success(breaker, clock):
    older, newest = probes(breaker, clock)
    clock.now += 0.5
    breaker.failed("DEADLINE_EXCEEDED", older, hung=True)
    assert breaker.state == "open"
    assert breaker.succeeded(newest)
    assert (breaker.state, breaker.cause, breaker.seconds_to_probe()) == ("closed", "", 0)


def test_an_older_probe_that_succeeds_after_the_newest_failed_does_not_close_it(breaker, clock):
    older, newest = probes(breaker, clock)
    breaker.failed("UNAVAILABLE", newest)
    assert not breaker.succeeded(older)
    assert breaker.state == "open"


def test_a_call_from_before_an_outage_does_not_pass_for_the_probe_of_an_earlier_one(breaker, clock):
    _, newest = probes(breaker, clock)
    assert breaker.succeeded(newest)
    clock.now += 5.0
    before = breaker.now()
    clock.now += 1.0
    opened(breaker)
    assert not breaker.succeeded(before)
    assert breaker.state == "open"


def test_it_is_untried_where_nobody_takes_the_probe_that_is_due(breaker, clock):
    assert not breaker.is_untried
    opened(breaker)
    clock.now += 1.75
    assert not breaker.is_untried
    clock.now += 0.25
    assert breaker.is_untried
    assert breaker.probe()
    assert not breaker.is_untried
    breaker.failed("UNAVAILABLE", breaker.now())
    assert not breaker.is_untried
    clock.now += 2.0
    assert breaker.is_untried
    breaker.probe()
    breaker.succeeded(breaker.now())
    assert not breaker.is_untried
