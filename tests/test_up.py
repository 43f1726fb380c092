"""`signin up` whole: what a crash, a drain and a kill leave behind."""

from __future__ import annotations

import os
import signal

import pytest

from tests.running import SLOW_INSERTS, Up, event_id, until

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    up = Up(tmp_path_factory.mktemp("up")).start()
    yield up
    assert up.stop() == 0
    assert up.left() == {}


def expected(first, count):
    return {event_id(number) for number in range(first, first + count)}


def test_a_job_killed_in_the_middle_of_5000_events_loses_none_and_the_next_job_writes_the_rest(up):
    job = up.launch()
    up.publish(0, 2500)
    until(lambda: len(up.rows()) == 2500)
    up.bigquery_fault(SLOW_INSERTS)
    up.publish(2500, 2500)
    (child,) = up.job_processes()
    os.kill(child, signal.SIGKILL)
    up.await_state(job, "FAILED")
    assert "SIGKILL" in up.get(f"/jobs/{job}")["cause"]
    up.bigquery_fault()

    following = up.launch()
    until(lambda: expected(0, 5000) <= up.rows().keys(), 60)
    assert up.rows().keys() == expected(0, 5000)
    up.drain(following)


def test_a_drain_in_the_middle_of_5000_events_leaves_the_rest_to_the_next_job(up):
    job = up.launch()
    up.bigquery_fault(SLOW_INSERTS)
    up.publish(10_000, 500)
    until(lambda: up.get(f"/jobs/{job}")["state"] == "RUNNING")
    up.publish(10_500, 4500)
    up.drain(job)
    up.bigquery_fault()
    written = up.rows().keys() & expected(10_000, 5000)
    assert 0 < len(written) < 5000

    following = up.launch()
    until(lambda: expected(10_000, 5000) <= up.rows().keys(), 60)
    up.drain(following)
    rows = up.rows()
    assert {rows[name] for name in expected(10_000, 5000)} == {1}


def test_after_a_kill_no_process_is_left_and_the_next_up_knows_jobs_rows_and_messages(tmp_path):
    up = Up(tmp_path).start()
    try:
        drained = up.launch()
        up.publish(0, 10)
        until(lambda: len(up.rows()) == 10)
        up.drain(drained)
        running = up.launch()
        up.bigquery_fault(SLOW_INSERTS)
        up.publish(10, 10)
        up.kill()
        until(lambda: not up.left(), 5)

        up = Up(tmp_path).start()
        states = {job["id"]: job["state"] for job in up.get("/jobs")["jobs"]}
        assert states[drained] == "DRAINED"
        up.await_state(running, "RUNNING")
        until(lambda: expected(0, 20) == up.rows().keys())
    finally:
        up.stop()
    assert up.left() == {}


def test_the_service_answers_the_articles_message_and_the_rows_command_shows_it(up):
    job = up.launch()
    answer = up.post("/events/signin", {"userid": "93234234", "date": "2017-10-17T20:57:17.338320"})
    assert answer.status_code == 202
    assert answer.json()["message_id"].isdecimal()
    until(lambda: answer.json()["event_id"] in up.rows())
    up.drain(job)
