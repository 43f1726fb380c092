"""How long callers who are turned away are told to wait."""

from __future__ import annotations

from service.backpressure import FIRST_SECONDS, MOST_SECONDS, Drain


class Clock:
    """A time in seconds that only the test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def drain_at_work(clock, per_second, waiting, seconds=3.0):
    """A drain that let `per_second` leave for some seconds, while callers were turned away."""
    drain = Drain(clock)
    for _ in range(round(seconds * 10)):
        drain.retry_after_seconds(waiting)
        clock.now += 0.1
        drain.took(round(per_second / 10))
    return drain


def test_the_first_callers_that_are_turned_away_wait_little():
    clock = Clock()
    drain = Drain(clock)
    assert drain.retry_after_seconds(20_000) == FIRST_SECONDS <= 2
    clock.now += 0.5
    drain.took(1000)
    assert drain.retry_after_seconds(20_000) == FIRST_SECONDS


def test_the_trickle_before_a_burst_does_not_count_as_its_rate():
    clock = Clock()
    drain = Drain(clock)
    for _ in range(100):  # one a second came, and left at once
        clock.now += 1.0
        drain.took(1)
    assert drain.retry_after_seconds(20_000) == FIRST_SECONDS


def test_a_rate_that_was_measured_says_how_long_it_takes():
    clock = Clock()
    drain = drain_at_work(clock, per_second=1000, waiting=20_000)
    assert drain.retry_after_seconds(4990) == 5
    assert drain.retry_after_seconds(1) == 1
    assert drain.retry_after_seconds(10_000_000) == MOST_SECONDS


def test_where_nothing_leaves_callers_wait_as_long_as_that_has_lasted_up_to_a_minute():
    clock = Clock()
    drain = Drain(clock)
    told = []
    for _ in range(100):
        told.append(drain.retry_after_seconds(20_000))
        clock.now += 1.0
    assert told[0] == FIRST_SECONDS
    assert told == sorted(told)
    assert told[30] == 30
    assert told[-1] == MOST_SECONDS
    drain.took(10_000)  # in the last second or two
    assert drain.retry_after_seconds(20_000) <= 4


def test_polite_callers_that_come_back_seldom_do_not_hide_a_standstill():
    clock = Clock()
    drain = Drain(clock)
    drain.retry_after_seconds(1)
    clock.now += 300.0
    assert drain.retry_after_seconds(1) == MOST_SECONDS
