"""The figures of a load: percentiles, the fate of each event, and requests of the length that they tell."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.load import Samples, percentile
from service.load.signins import NOT_OURS, PUBLISHED, REFUSED, SPOOLED, UNKNOWN, Signins

# The figures


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values, percent):
    found = percentile(sorted(values), percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100


def test_requests_without_an_answer_make_no_percentile_better():
    samples = Samples(0.0, 10.0)
    for _ in range(98):
        samples.add(1.0, 0.001, 202)
    samples.add(1.0, 0.0, 0)
    samples.add(1.0, 0.0, 0)
    assert samples.percentile_ms(98) == 1.0
    assert samples.percentile_ms(99) == float("inf")
    assert samples.longest_ms() == 1.0
    assert samples.rate() == 9.8


def problem(code):
    return json.dumps({"type": "about:blank", "status": 503, "code": code}).encode()


def results_of(signins, *results):
    """The body of a batch's answer; each result has the event id of its place."""
    named = [{"event_id": signins.id_of(each["index"])} | each for each in results]
    return json.dumps({"results": named}).encode()


def test_each_event_of_a_batch_has_the_fate_that_its_result_names():
    signins = Signins("run", 4, "localhost", {})
    signins.request(0)
    results = [
        {"index": 0, "status": "published"},
        {"index": 1, "status": "failed", "error": {"code": "outbox_full"}},
        {"index": 2, "status": "spooled"},
        {"index": 3, "status": "failed", "error": {"code": "publish_refused"}},
    ]
    signins.taken(0, 207, results_of(signins, *results), True)
    assert list(signins.fates) == [PUBLISHED, REFUSED, SPOOLED, REFUSED]
    assert list(signins.accepted()) == [0, 2]
    signins.request(1)
    signins.taken(1, 0, b"", True)
    assert list(signins.fates[4:]) == [UNKNOWN] * 4
    assert signins.answers[0, "no answer"] == 4
    assert signins.answers[207, "outbox_full"] == 1


PAGE = b"<html>Please sign in</html>"
TAKEN = b'{"event_id":"run-000000000","status":"published","message_id":"1"}'


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, PAGE),
        (202, PAGE),
        (202, b""),
        (202, b"{}"),
        (202, b'{"status":"\xff"}'),
        (202, TAKEN.replace(b"000000000", b"000000001")),
        (202, TAKEN.replace(b"published", b"queued")),
        (200, TAKEN),
        (204, b""),
        (207, TAKEN),
        (302, TAKEN),
    ],
)
def test_what_no_sign_in_service_answers_is_no_sign_in_that_was_taken(status, body):
    signins = Signins("run", 1, "localhost", {})
    signins.request(0)
    signins.taken(0, status, body, True)
    assert list(signins.fates) == [REFUSED]
    assert signins.answers == {(status, NOT_OURS): 1}


@pytest.mark.parametrize("body", [TAKEN, json.dumps(json.loads(TAKEN), indent=2).encode()])
def test_the_answer_to_a_sign_in_counts_however_its_json_is_written(body):
    signins = Signins("run", 1, "localhost", {})
    signins.request(0)
    signins.taken(0, 202, body, True)
    assert list(signins.fates) == [PUBLISHED]
    assert signins.answers == {(202, "published"): 1}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, PAGE),
        (202, PAGE),
        (202, TAKEN),
        (202, b'{"results":[]}'),
        (202, b'{"results":[{"index":0,"event_id":"mine-0","status":"published"}]}'),
        (202, b'{"results":[{"index":9,"event_id":"run-000000009","status":"published"}]}'),
        (200, b'{"results":[{"index":0,"event_id":"run-000000000","status":"published"}]}'),
    ],
)
def test_what_no_sign_in_service_answers_takes_nothing_of_a_batch(status, body):
    signins = Signins("run", 2, "localhost", {})
    signins.request(0)
    signins.taken(0, status, body, True)
    assert list(signins.fates) == [REFUSED] * 2
    assert signins.answers == {(status, NOT_OURS): 2}


def test_an_event_of_which_a_batch_says_nothing_was_not_taken_and_is_counted():
    signins = Signins("run", 3, "localhost", {})
    signins.request(0)
    signins.taken(0, 202, results_of(signins, {"index": 2, "status": "published"}), True)
    assert list(signins.fates) == [REFUSED, REFUSED, PUBLISHED]
    assert signins.answers == {(202, NOT_OURS): 2, (202, "published"): 1}


@pytest.mark.parametrize("batch", [1, 2])
def test_a_problem_whose_code_is_that_of_a_success_is_none(batch):
    signins = Signins("run", batch, "localhost", {})
    signins.request(0)
    signins.taken(0, 503, problem("published"), True)
    assert signins.answers == {(503, NOT_OURS): batch}


def test_a_server_that_invents_codes_does_not_fill_the_memory():
    signins = Signins("run", 1, "localhost", {})
    for number in range(1000):
        signins.request(number)
        signins.taken(number, 503, problem(f"code-{number}" * 20), True)
    assert len(signins.answers) == 51
    assert sum(signins.answers.values()) == 1000
    assert all(len(code) <= 64 for _, code in signins.answers)


@given(st.integers(0, 10**9 - 1001), st.integers(1, 1000))
def test_every_request_of_a_run_has_the_length_that_its_head_tells(number, batch):
    signins = Signins("load-0123abcd", batch, "localhost", {"Authorization": "Bearer x"})
    signins.fates = bytearray(1)  # as if it were long already
    head, _, body = (signins._head + signins._body(number, batch)).partition(b"\r\n\r\n")
    assert int(re.search(rb"Content-Length: (\d+)", head)[1]) == len(body)
    events = json.loads(body) if batch > 1 else [json.loads(body)]
    assert [signins.number_of(event["event_id"]) for event in events] == [*range(number, number + batch)]
