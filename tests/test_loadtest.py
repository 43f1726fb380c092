"""`signin loadtest`: its figures against a service on the local Pub/Sub, faults, and its verdict."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from contextlib import closing
from types import SimpleNamespace

import httpx
import pytest
from typer.testing import CliRunner

from service.cli import app, loadtest
from service.local.faults import Fault, set_faults
from tests.loadtest_figures import answers, figures, load
from tests.pubsub_topic import make_topic, pull_all
from tests.running import until
from tests.sample_metrics import read
from tests.server_process import local_pubsub, service


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The service with an outbox of 40 events, and its Pub/Sub."""
    directory = tmp_path_factory.mktemp("served")
    with local_pubsub(directory) as pubsub:
        make_topic(pubsub.address)
        with service(directory, pubsub.address, SIGNIN_OUTBOX_MAX_ROWS="40") as ours:
            yield SimpleNamespace(url=ours.address, pubsub=pubsub.address, process=ours, directory=directory)


# Against the service


def test_every_event_of_a_closed_loop_is_published_under_the_prefix_of_the_run(served):
    code, found = figures("--url", served.url, "--count", 300, "--concurrency", 8, "--max-error-share", 0)
    assert code == 0
    assert (found["mode"], found["requests"], found["passed"]) == ("closed", 300, True)
    assert answers(found) == {(202, "published"): 300}
    assert found["events"] == {"accepted": 300, "refused": 0, "unanswered": 0}
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] <= found["latency_ms"]["max"]
    ids = [message.attributes["event_id"] for message in pull_all(served.pubsub)]
    own = [each for each in ids if each.startswith(found["run"])]
    assert sorted(own) == [f"{found['run']}-{number:09d}" for number in range(300)]


def test_an_open_loop_keeps_its_rate_and_counts_no_more_than_was_due(served):
    code, found = figures("--url", served.url, "--rate", 200, "--duration", 1)
    assert code == 0
    assert found["mode"] == "open"
    assert found["requests"] == 200
    assert 0 < found["events_per_second"] <= 200


def measured(served):
    return read(httpx.get(served.url + "/metrics", timeout=30).text)


def test_a_stall_is_felt_by_all_who_would_have_called_meanwhile(served):
    def accepted():
        return sum(value for name, value in measured(served).items() if name[0] == "signin_events_total")

    before = accepted()

    def stall():
        until(lambda: accepted() > before)
        served.process.send(signal.SIGSTOP)
        time.sleep(0.5)  # the stall itself
        served.process.send(signal.SIGCONT)

    thread = threading.Thread(target=stall)
    thread.start()
    code, found = figures("--url", served.url, "--rate", 200, "--duration", 1.5, "--concurrency", 4)
    thread.join()
    assert code == 0
    assert found["requests"] == 300
    # A third of the calls were due while nothing answered, though only four were on the line.
    assert found["latency_ms"]["p90"] > 200
    # The stall may have opened the breaker; the next test's events are to be published.
    until(lambda: measured(served).get(("signin_breaker_processes", "closed")) == 1)


def test_batches_are_counted_by_event(served):
    code, found = figures("--url", served.url, "--batch", 50, "--count", 500, "--concurrency", 2)
    assert code == 0
    assert (found["requests"], found["events"]["accepted"]) == (10, 500)
    assert answers(found) == {(202, "published"): 500}


@pytest.mark.parametrize(
    "options",
    [("--count", 5), ("--count", 23), ("--count", 23, "--warm-up", 0.2), ("--count", 23, "--rate", 50)],
)
def test_no_more_events_are_sent_than_the_count_where_batches_do_not_divide_it(served, options):
    code, found = figures("--url", served.url, "--batch", 10, "--concurrency", 2, *options)
    count = options[1]
    assert code == 0
    assert answers(found) == {(202, "published"): count}
    assert found["requests"] == -(-count // 10)
    if "--warm-up" not in options:
        ids = [message.attributes["event_id"] for message in pull_all(served.pubsub)]
        own = sorted(each for each in ids if each.startswith(found["run"]))
        assert own == [f"{found['run']}-{number:09d}" for number in range(count)]


def test_a_short_last_batch_without_an_answer_counts_as_the_events_that_it_has():
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    _, found = figures("--url", f"http://127.0.0.1:{port}", "--batch", 10, "--count", 23)
    assert found["events"] == {"accepted": 0, "refused": 0, "unanswered": 23}
    assert (
        "3 of at most 10 events" in load("--url", f"http://127.0.0.1:{port}", "--batch", 10, "--count", 23)[1]
    )


def test_a_closed_loop_without_a_count_ends_at_the_most_events(served, monkeypatch):
    monkeypatch.setattr(loadtest, "MOST_EVENTS", 25)
    code, found = figures("--url", served.url, "--batch", 10, "--concurrency", 2, "--duration", 20)
    assert code == 0
    assert found["events"]["accepted"] == 25


def test_spooled_events_and_a_full_outbox_are_told_apart_by_status_and_code(served):
    set_faults(served.pubsub, [Fault(method="Publish", code="UNAVAILABLE")])
    try:
        code, found = figures(
            *("--url", served.url, "--count", 200, "--concurrency", 4, "--max-error-share", 0.5)
        )
    finally:
        set_faults(served.pubsub, [])
    assert code == 1
    seen = answers(found)
    assert 0 < seen[202, "spooled"] <= 40
    assert seen[503, "outbox_full"] == 200 - seen[202, "spooled"]
    (verdict,) = found["verdicts"]
    assert (verdict["name"], verdict["met"]) == ("max_error_share", False)
    assert verdict["value"] == pytest.approx(seen[503, "outbox_full"] / 200)


def test_a_rate_limit_is_told_and_the_key_comes_from_the_environment(served, tmp_path):
    made = CliRunner().invoke(
        app,
        ["keys", "create", "load", "--scope", "events:write", "--json"],
        env={"SIGNIN_DATA_DIR": str(tmp_path)},
    )
    key = json.loads(made.stdout)["key"]
    with service(
        tmp_path,
        served.pubsub,
        SIGNIN_DATA_DIR=str(tmp_path),
        SIGNIN_EVENT_REQUESTS_PER_SECOND="1",
        SIGNIN_REQUIRE_AUTHENTICATION="true",
    ) as shut:
        until(lambda: httpx.get(shut.address + "/startupz", timeout=30).status_code == 200)
        without = figures("--url", shut.address, "--count", 5)
        code, found = figures("--url", shut.address, "--count", 50, SIGNIN_API_KEY=key)
    assert without[0] == 1
    assert answers(without[1]) == {(401, "authentication_required"): 5}
    assert code == 0
    seen = answers(found)
    assert 10 <= seen[202, "published"] <= 20  # ten seconds' worth at once, and one for each that it takes
    assert seen[429, "rate_limited"] == 50 - seen[202, "published"]
    assert key not in json.dumps(found)


def test_ctrl_c_prints_what_there_is(served):
    def requests():
        samples = read(httpx.get(f"{served.url}/metrics", timeout=10).text)
        return sum(count for key, count in samples.items() if key[0] == "signin_requests_total")

    def interrupt():
        before = requests()
        until(lambda: requests() > before + 30)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code, found = figures("--url", served.url, "--rate", 100, "--duration", 60)
    thread.join()
    assert code == 130
    assert found["interrupted"] is True
    assert 10 < found["requests"] < 3000
    assert 0 < found["seconds"] < 30


# Who may be loaded, and with how much


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--url", "http://signin.example.com"), "signin.example.com is not this machine"),
        (("--url", "http://10.0.0.1:80", "--allow-remote", "10.0.0.2"), "10.0.0.1 is not this machine"),
        (("--url", "ftp://127.0.0.1"), "is no base URL"),
        (("--url", "http://127.0.0.1:99999"), "is no URL"),
        (("--rate", "100000", "--duration", "1000"), "more than 10,000,000 events"),
    ],
)
def test_what_must_not_be_loaded_is_refused_before_anything_is_sent(options, complaint):
    code, text = load(*options)
    assert code == 2
    assert complaint in text


def test_another_address_is_loaded_where_it_is_named(served):
    # Linux takes this address for the machine itself, and it is none of loopback's.
    url = served.url.replace("127.0.0.1", "0.0.0.0")
    assert load("--url", url, "--count", 3)[0] == 2
    code, found = figures("--url", url, "--allow-remote", "0.0.0.0", "--count", 3)
    assert (code, answers(found)) == (1, {(421, "host_not_allowed"): 3})
