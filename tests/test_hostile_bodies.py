"""The bounded form of `tests.soak.hostile_bodies`: some 50 MB, and connections beyond the limit."""

from __future__ import annotations

import pytest

from tests.soak.hostile_bodies import kinds, run

REFUSED = {"too large": 413, "stalled bodies": 408, "half a head": 408, "huge head": 431, "not HTTP": 400}


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_hostile_requests_leave_the_memory_and_good_signins_alone():
    report = await run(50, 1000, lambda line: None, SIGNIN_MAX_CONNECTIONS="300")
    assert report.problems() == []
    assert report.answers.keys() >= {kind.name for kind in kinds()}
    assert report.answers["too large"].keys() == {413}
    for name, status in (
        ("stalled bodies", 408),
        ("half a head", 408),
        ("huge head", 431),
        ("not HTTP", 400),
    ):
        assert set(report.answers[name]) == {status}, name
    assert report.answers["idle"]["closed"] >= 600
    assert max(report.good_seconds) < 10
