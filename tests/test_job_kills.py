"""The short form of `tests.soak.job_kills`."""

from __future__ import annotations

import pytest

from tests.soak.job_kills import run


@pytest.mark.soak
def test_a_job_killed_while_it_writes_leaves_every_event_in_the_table_and_none_twice_in_the_view(tmp_path):
    tally = run(tmp_path, kills=2, events=6000, quiet=True)
    assert tally.holds(), tally.summary()
