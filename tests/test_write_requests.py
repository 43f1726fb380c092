"""How rows go in requests: bounded in number, bytes and time, with pauses that grow between calls."""

from __future__ import annotations

from dataclasses import replace

import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage as BeamMessage
from hypothesis import given
from hypothesis import strategies as st

from tests.write_servers import (
    DATE,
    POLICY,
    Servers,
    ids,
    messages_of,
    servers_of_each_method,  # noqa: F401 - a fixture
)
from transforms.bigquery_delivery import WritePolicy, requests
from transforms.signin_event import SigninEvent, encode


@pytest.mark.parametrize(
    ("policy", "messages", "most"),
    [
        (replace(POLICY, max_rows=2), 9, 2),
        (replace(POLICY, max_bytes=250), 9, 4),
        (replace(POLICY, max_seconds=0), 600, 300),
    ],
)
def test_a_bundle_goes_in_requests_of_bounded_rows_bytes_and_time(
    servers: Servers, policy: WritePolicy, messages: int, most: int
):
    servers.refuse("user-0", "user-5")
    letters, _, _ = servers.write(messages_of(messages), policy)
    assert 1 < max(servers.requests()) <= most
    assert sorted(letter["event_id"] for letter in letters) == ["id-0", "id-5"]
    assert len(ids(servers.taken())) == len(set(ids(servers.taken()))) == messages - 2


def test_no_more_messages_are_held_than_the_bound_says_however_large_their_attributes(servers: Servers):
    attributes = {f"k{number}": "é" * 1000 for number in range(20)}
    messages = [BeamMessage(body, attributes) for body in messages_of(600)]
    letters, _, _ = servers.write(messages, replace(POLICY, max_bytes=1_000_000))
    assert letters == []
    assert len(ids(servers.taken())) == len(set(ids(servers.taken()))) == 600
    assert max(servers.requests()) <= 256  # what is decoded at once


def test_requests_stay_below_the_limit_in_bytes_whatever_the_text(servers: Servers):
    long = [encode(SigninEvent(f"u{n}", DATE, f"id-{n}", {"a": "é😀\x7f" * 300})) for n in range(60)]
    result = servers.write(long, replace(POLICY, max_bytes=30_000))
    assert result.counters["rows_written"] == 60
    sizes = servers.rest.sizes if servers.method == "INSERT_ALL" else servers.append.sizes
    assert len(sizes) > 1
    assert max(sizes) <= 31_000  # what surrounds the rows included
    assert {row["attributes"][0]["value"] for row in servers.taken()} == {"é😀\x7f" * 300}


@pytest.mark.parametrize("failures", range(1, 12))
def test_the_pause_grows_and_is_bounded(failures: int):
    policy = WritePolicy()
    longest = min(policy.first_pause_seconds * 2 ** (failures - 1), policy.longest_pause_seconds)
    assert longest / 2 <= policy.pause_seconds(failures) <= longest


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 7), st.integers(1, 120))
def test_requests_cover_all_rows_once_and_stay_within_the_policy(sizes, max_rows, max_bytes):
    parts = list(requests(sizes, WritePolicy(max_rows=max_rows, max_bytes=max_bytes)))
    assert [index for start, stop in parts for index in range(start, stop)] == list(range(len(sizes)))
    for start, stop in parts:
        assert stop - start <= max_rows
        assert sum(sizes[start:stop]) <= max_bytes or stop - start == 1
