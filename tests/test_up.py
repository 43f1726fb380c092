"""`signin up` whole: what a crash, a drain and a kill leave behind."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from service.config import Settings
from service.local.faults import Fault
from service.local.stack import Stack, StackError
from tests.otlp_receiver import Receiver
from tests.running import SLOW_INSERTS, Up, event_id, until

pytestmark = pytest.mark.timeout(240)


TOPIC = "topic-user-signin"
WALK = (
    "POST /events/signin",
    f"send {TOPIC}",
    "google.pubsub.v1.Publisher/Publish",
    "process user-signin-bigquery",
)


@pytest.fixture(scope="module")
def receiver():
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def up(tmp_path_factory, receiver):
    up = Up(tmp_path_factory.mktemp("up"), **receiver.environment).start()
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


def test_one_trace_tells_all_the_way_of_an_event_also_of_one_that_waited_in_the_outbox(up, receiver):
    job = up.launch()
    answer = up.post("/events/signin", {"userid": "93234234", "date": "2017-10-17T20:57:17.338320"})
    assert answer.status_code == 202
    assert answer.json()["message_id"].isdecimal()
    until(lambda: answer.json()["event_id"] in up.rows())

    def is_mine(span):
        return span.attributes.get("messaging.message.id") == answer.json()["message_id"]

    sent = receiver.until(lambda seen: next(filter(is_mine, seen.spans), None))
    request, send, publish, write = receiver.until(lambda seen: seen.of(sent.trace_id, *WALK))
    assert [each.service for each in (request, send, publish, write)] == ["signin"] * 3 + ["signin-pipeline"]
    kinds = [each.kind for each in (request, send, publish, write)]
    assert kinds == ["SERVER", "PRODUCER", "CLIENT", "CONSUMER"]
    assert (request.parent_id, send.parent_id) == ("", request.span_id)
    assert publish.parent_id == write.parent_id == send.span_id
    assert request.began <= send.began <= publish.began <= publish.ended <= write.ended

    trace_id, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    up.pubsub_fault(Fault(method="Publish", code="UNAVAILABLE"))
    signin = {"userid": "1", "date": "2017-10-17T20:57:17Z"}
    answer = up.post("/events/signin", signin, traceparent=f"00-{trace_id}-{caller}-01")
    assert answer.json()["status"] == "spooled"
    up.pubsub_fault()

    def published(seen):  # the call that failed first has a span too
        found = seen.of(trace_id, *WALK)
        return found if found and not found[2].failed else None

    request, send, publish, write = receiver.until(published)
    assert (request.parent_id, send.parent_id) == (caller, request.span_id)
    assert send.attributes["signin.status"] == "spooled"
    assert publish.parent_id == write.parent_id == send.span_id
    assert publish.began > request.ended
    assert answer.json()["event_id"] in up.rows()
    up.drain(job)


@pytest.mark.parametrize("server", ["pubsub", "bigquery", "dataflow", "monitoring"])
async def test_where_a_port_of_the_stack_is_taken_its_option_is_named(tmp_path, server):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        stack = Stack(Settings(_env_file=None, data_dir=tmp_path), **{f"{server}_port": port})
        with pytest.raises(StackError, match=f"(?s):{port} cannot be listened on.*") as refused:
            await stack.start()
    last = str(refused.value).splitlines()[-1]
    assert last == f"Choose another port with --{server}-port; 0 takes a free one."
