"""Every state with every word of Dataflow and every action, as tests/samples/job_life.md has them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from service.job_state import (
    DATAFLOW_STATES,
    REQUESTED_ORDER,
    STATES,
    TERMINAL_STATES,
    UNRECOGNIZED,
    Action,
    Standing,
    Verdict,
    allowed_actions,
    observe,
    state_to_send,
)

TABLES = Path(__file__).parent / "samples" / "job_life.md"
WORDS = {"UNKNOWN": ["UNKNOWN"], "nothing": [""], "other": ["SOMETHING_NEW", "LOST", "LAUNCHING", "73"]}
MARKS = {"yes": Verdict.ALLOWED, "so": Verdict.ALREADY, "no": Verdict.REFUSED}
ASKED = timedelta(minutes=30)
COLUMNS: dict[str, tuple[Action, dict[str, object]]] = {
    "drain": ("drain", {}),
    "cancel": ("cancel", {}),
    "update": ("update", {}),
    "update*": ("update", {"is_updating": True}),
    "scale": ("scale", {}),
    "force": ("force_cancel", {}),
    "force 29": ("force_cancel", {"cancel_age": ASKED - timedelta(minutes=1)}),
    "force 30": ("force_cancel", {"cancel_age": ASKED}),
    "force again": ("force_cancel", {"cancel_age": ASKED, "is_forced": True}),
}


def rows(first_heading: str, second_heading: str) -> Iterator[dict[str, str]]:
    """The rows of the table that begins with these two headings."""
    headings: list[str] = []
    for line in TABLES.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            headings = []
        elif not headings:
            headings = cells
        elif headings[:2] == [first_heading, second_heading] and not set(line) <= set("|:-"):
            yield dict(zip(headings, cells, strict=True))


OBSERVATIONS = list(rows("state", "STOPPED"))
ACTIONS = list(rows("state", "requested"))
(BATCH,) = rows("batch", "drain")


def test_the_tables_name_every_state_and_every_word() -> None:
    assert sorted(row["state"] for row in OBSERVATIONS) == sorted(STATES)
    assert set(OBSERVATIONS[0]) == {"state"} | DATAFLOW_STATES | set(WORDS)
    named = [(row["state"], row["requested"]) for row in ACTIONS]
    assert sorted(named) == sorted(itertools.product(STATES, REQUESTED_ORDER))
    assert set(ACTIONS[0]) == {"state", "requested", "asks"} | set(COLUMNS)


@pytest.mark.parametrize("row", OBSERVATIONS, ids=lambda row: row["state"])
def test_an_observation_does_what_the_table_says(row: dict[str, str]) -> None:
    state = row.pop("state")
    for (column, mark), requested in itertools.product(row.items(), REQUESTED_ORDER):
        for word in WORDS.get(column, [column]):
            expected = {"=": word, ".": state, "?": UNRECOGNIZED}[mark]
            after = observe(state, requested, word)
            assert after.state == expected, f"{state} and {word}"
            assert (after.changed, after.ended) == (expected != state, expected in TERMINAL_STATES)
            assert after.send == state_to_send(expected, requested)


@pytest.mark.parametrize("row", ACTIONS, ids=lambda row: f"{row['state']}-{row['requested']}")
def test_an_action_is_answered_as_the_table_says(row: dict[str, str]) -> None:
    state, requested = row["state"], row["requested"]
    for column, (action, context) in COLUMNS.items():
        given = allowed_actions(Standing(state, requested, **context))[action]  # type: ignore[arg-type]
        assert given.verdict is MARKS[row[column]], f"{column}: {given}"
        assert bool(given.reason) == (given.verdict is not Verdict.ALLOWED)
    assert (state_to_send(state, requested) or "-") == row["asks"]


@pytest.mark.parametrize("row", ACTIONS, ids=lambda row: f"{row['state']}-{row['requested']}")
def test_of_a_batch_job_neither_drain_nor_update_nor_scale_may_be_asked(row: dict[str, str]) -> None:
    state, requested = row["state"], row["requested"]
    cells = row if state in TERMINAL_STATES else row | BATCH
    for column, (action, context) in COLUMNS.items():
        standing = Standing(state, requested, is_batch=True, **context)  # type: ignore[arg-type]
        given = allowed_actions(standing)[action]
        assert given.verdict is MARKS[cells[column]], f"{column}: {given}"
        assert bool(given.reason) == (given.verdict is not Verdict.ALLOWED)
