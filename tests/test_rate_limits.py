"""How often a key may ask: the law of the bucket, the headers, and the answer to too much."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.auth import rate_limits
from service.auth.rate_limits import Bucket, Policy
from service.errors import RateLimitedError
from tests.doors import bearer, make_key, shut
from tests.serving import JSON, assert_problem


@given(
    pauses=st.lists(st.floats(0, 5), max_size=200),
    rate=st.floats(0.1, 100),
    capacity=st.floats(1, 100),
)
def test_no_window_lets_more_through_than_its_capacity_and_what_came_meanwhile(pauses, rate, capacity):
    now, taken = 0.0, []
    bucket = Bucket(capacity, now)
    for pause in pauses:
        now += pause
        if bucket.take(now, rate, capacity):
            taken.append(now)
    for first, since in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= capacity + rate * (taken[last] - since) + 1e-6


@given(wait=st.floats(0, 100))
def test_who_waits_as_long_as_told_is_let_through(wait):
    policy = Policy("control", 0.5)
    for _ in range(5):
        policy.take("a", 0.0)
    with pytest.raises(RateLimitedError) as refused:
        policy.take("a", 0.0)
    assert policy.take("a", refused.value.retry_after_seconds + wait)
    assert policy.take("b", 0.0)


def test_the_callers_that_are_remembered_are_bounded(monkeypatch):
    monkeypatch.setattr(rate_limits, "MOST_BUCKETS", 8)
    policy = Policy("control", 1.0)
    for number in range(100):
        policy.take(f"caller {number}", 0.0)
    assert len(policy._buckets) == 8


async def test_each_answer_says_what_is_left_and_too_much_is_429(tmp_path, database_url):
    async with shut(tmp_path, database_url, control_requests_per_second=0.3) as (app, client):
        key = await make_key(app.state.database, "admin")
        other = await make_key(app.state.database, "admin", name="other")
        answers = [await client.get("/jobs", headers=bearer(key.text)) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"control";q=3;w=10'}
        left = [answer.headers["ratelimit"] for answer in answers]
        assert left[0] == '"control";r=2;t=4'
        assert left[3].startswith('"control";r=0;t=')
        problem = assert_problem(answers[3], 429, "rate_limited")
        assert problem["violated-policies"] == ["control"]
        assert 1 <= problem["retry_after"] <= 4
        assert (await client.get("/jobs", headers=bearer(other.text))).status_code == 200
        sent = await client.post("/events/signin", content=b"{}", headers=JSON | bearer(key.text))
        assert sent.status_code == 422  # another class of routes
        assert sent.headers["ratelimit-policy"] == '"events";q=20000;w=10'
        assert (await client.get("/healthz", headers=bearer(key.text))).status_code == 200


async def test_what_a_key_may_not_do_counts_too(tmp_path, database_url):
    async with shut(tmp_path, database_url, control_requests_per_second=0.3) as (app, client):
        key = await make_key(app.state.database, "events:write")
        answers = [await client.get("/jobs", headers=bearer(key.text)) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [403, 403, 403, 429]


async def test_a_limit_of_zero_is_none(tmp_path, database_url):
    async with shut(tmp_path, database_url, control_requests_per_second=0) as (app, client):
        key = await make_key(app.state.database, "admin")
        answers = await asyncio.gather(*(client.get("/jobs", headers=bearer(key.text)) for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        assert not any("ratelimit" in answer.headers for answer in answers)
