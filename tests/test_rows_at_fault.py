"""The search for the rows for which a request is refused as a whole, wherever they stand and however many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from transforms.bigquery_delivery import TAKEN, Answer, SchemaDoubtError, Sifted, WritePolicy, sift

PATIENT = WritePolicy(doubt_seconds=3600.0)
MOST_ROWS = 4_000
REQUEST_ROWS = 1_000


class Table:
    """Takes requests without a bad row whole, and refuses all others whole."""

    def __init__(self, is_bad: Callable[[int], bool]) -> None:
        self.is_bad = is_bad
        self.rows: list[int] = []
        self.requests: list[int] = []  # rows of each

    def send(self, encoded: Sequence[bytes]) -> Answer:
        self.requests.append(len(encoded))
        rows = [int(row) for row in encoded]
        if any(map(self.is_bad, rows)):
            raise SchemaDoubtError("bad request")
        self.rows += rows
        return TAKEN

    def sift(self, count: int, policy: WritePolicy = PATIENT) -> Sifted:
        """Searches `count` rows, in requests of at most REQUEST_ROWS."""
        parts = [(at, min(at + REQUEST_ROWS, count)) for at in range(0, count, REQUEST_ROWS)]
        rows = [b"%d" % number for number in range(count)]
        return sift(self.send, rows, parts, policy, lambda: None, "a table")


def runs_of(lengths: list[int]) -> list[bool]:
    """Whether each row is bad: good ones and bad ones by turns, so many each time."""
    return [bool(turn % 2) for turn, length in enumerate(lengths) for _ in range(length)][:MOST_ROWS]


PLACEMENTS = st.one_of(
    st.lists(st.integers(0, 500), max_size=16).map(runs_of),
    st.lists(st.integers(0, 3), max_size=2_000).map(runs_of),
    st.tuples(st.integers(1, MOST_ROWS), st.integers(1, 50), st.booleans()).map(
        lambda given: [(number % given[1] == 0) is given[2] for number in range(given[0])]
    ),
    st.tuples(st.integers(1, MOST_ROWS), st.randoms(use_true_random=False)).map(
        lambda given: [given[1].random() < 0.5 for _ in range(given[0])]
    ),
).filter(lambda bad: not all(bad))


@settings(max_examples=60)
@given(PLACEMENTS)
@example([True] * 20 + [False] * 480)
@example([True] * (MOST_ROWS - 1) + [False])
@example([number % 2 == 1 for number in range(3_000)])
@example([number % 2 == 0 for number in range(3_000)])
def test_wherever_the_bad_rows_stand_every_good_one_is_written_once_and_every_bad_one_told(bad: list[bool]):
    table = Table(lambda number: bad[number])
    found = table.sift(len(bad))
    assert found.has_taken
    assert Counter(table.rows) == Counter(number for number, is_bad in enumerate(bad) if not is_bad)
    assert found.suspects.keys() == {number for number, is_bad in enumerate(bad) if is_bad}
    assert found.refused == {}
    assert len(table.requests) <= 3 * len(bad) + 1 + len(bad) // REQUEST_ROWS


@pytest.mark.parametrize("count", [17, 500, 5_000])
def test_a_table_that_takes_no_row_is_found_out_within_two_requests_a_row(count: int):
    table = Table(lambda _: True)
    with pytest.raises(SchemaDoubtError):
        table.sift(count)
    assert table.rows == []
    assert len(table.requests) <= 2 * count


def test_a_table_that_takes_no_row_is_not_asked_for_longer_than_the_policy_says():
    table = Table(lambda _: True)
    with pytest.raises(SchemaDoubtError):
        table.sift(900, replace(PATIENT, doubt_seconds=0.0))
    # Each part of the level of 32 was tried all the same.
    assert Counter(table.requests)[900 // 32] + Counter(table.requests)[900 // 32 + 1] == 32
    assert len(table.requests) <= 64


def test_time_that_is_up_ends_no_search_that_has_found_a_row_to_take():
    table = Table(lambda number: number != 300)
    with pytest.raises(SchemaDoubtError):
        table.sift(900, replace(PATIENT, doubt_seconds=0.0))
    table = Table(lambda number: number > 30)
    assert len(table.sift(900, replace(PATIENT, doubt_seconds=0.0)).suspects) == 869
    assert len(table.rows) == 31


def test_rows_that_were_refused_before_the_table_was_mended_are_no_bad_ones():
    table = Table(lambda number: number == 3 or len(table.requests) < 300)
    found = table.sift(200)
    assert found.suspects.keys() == {3}
    assert Counter(table.rows) == Counter(set(range(200)) - {3})
