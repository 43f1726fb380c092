"""What a running job on Dataflow can be updated to: the names and the coders of its steps."""

from __future__ import annotations

import pytest

from pipeline.options import WRITE_METHODS, WRITE_METHODS_WITH_JAVA
from pipeline.user_signin import run
from tests.graph_snapshot import SNAPSHOT, dry_run


def test_the_steps_and_their_coders_stay_as_running_jobs_know_them():
    assert dry_run(run).lines() == SNAPSHOT.read_text().splitlines(), (
        "Running jobs can no longer be updated in place. If that is meant, say so in the changelog and run: "
        "uv run python -m tests.graph_snapshot"
    )


def test_a_parameter_changes_no_step_so_that_an_update_may_change_it():
    changed = dry_run(
        run,
        "--input_subscription=projects/my-project/subscriptions/s",
        "--output_table=other.signins",
        "--dead_letter_table=other.dead_letters",
        "--pipeline_version=2",
    )
    assert changed.lines() == dry_run(run).lines()


SAME_GRAPH = ("AUTO", "STORAGE_WRITE", "INSERT_ALL")


@pytest.mark.parametrize("method", [way for way in WRITE_METHODS if way not in WRITE_METHODS_WITH_JAVA])
def test_an_update_may_change_the_way_to_write_among_those_of_this_project_alone(method):
    same = dry_run(run, f"--write_method={method}").lines() == SNAPSHOT.read_text().splitlines()
    assert same is (method in SAME_GRAPH)
