"""The figures of a load: percentiles, the fate of each event, and requests of the length that they tell."""

from __future__ import annotations

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from service.load import Samples, percentile
from service.load.signins import PUBLISHED, REFUSED, SPOOLED, UNKNOWN, Signins

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


def test_each_event_of_a_batch_has_the_fate_that_its_result_names():
    signins = Signins("run", 4, "localhost", {})
    signins.request(0)
    results = [
        {"index": 0, "status": "published"},
        {"index": 1, "status": "failed", "error": {"code": "outbox_full"}},
        {"index": 2, "status": "spooled"},
        {"index": 3, "status": "failed", "error": {"code": "publish_refused"}},
    ]
    signins.taken(0, 207, json.dumps({"results": results}).encode(), True)
    assert list(signins.fates) == [PUBLISHED, REFUSED, SPOOLED, REFUSED]
    assert list(signins.accepted()) == [0, 2]
    signins.request(1)
    signins.taken(1, 0, b"", True)
    assert list(signins.fates[4:]) == [UNKNOWN] * 4
    assert signins.answers[0, "no answer"] == 4
    assert signins.answers[207, "outbox_full"] == 1


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
