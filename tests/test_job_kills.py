"""The short forms of `tests.soak.job_kills` and `tests.soak.replay_letters`."""

from __future__ import annotations

import pytest

from tests.soak import job_kills, replay_letters

pytestmark = [pytest.mark.soak, pytest.mark.timeout(240)]


def test_a_job_killed_while_it_writes_leaves_every_event_in_the_table_and_none_twice_in_the_view(tmp_path):
    tally = job_kills.run(tmp_path, kills=2, events=6000, quiet=True)
    assert tally.holds(), tally.summary()


def test_letters_replayed_after_their_cause_is_mended_become_one_row_each_though_the_service_is_killed(
    tmp_path,
):
    outcome = replay_letters.run(tmp_path, 2000, quiet=True)
    assert outcome.holds(), outcome.summary()
