"""The bounded form of `tests.soak.hostile_bodies`: some 50 MB, and connections beyond the limit."""

from __future__ import annotations

import pytest

from tests.soak.hostile_bodies import run
from tests.soak.hostile_kinds import kinds

MOST_CONNECTIONS = 300
IDLE = 1000


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("kind", "workers"), [("sqlite", 1), ("postgresql", 2)])
async def test_hostile_requests_leave_the_memory_and_good_signins_alone(request, kind, workers):
    url = request.getfixturevalue("postgres").create(migrated=True) if kind == "postgresql" else ""
    values = {"SIGNIN_MAX_CONNECTIONS": str(MOST_CONNECTIONS)}
    report = await run(50, IDLE, lambda line: None, workers=workers, database_url=url, **values)
    assert report.problems() == []
    assert report.answers.keys() >= {kind.name for kind in kinds()}
    assert report.answers["too large"].keys() == {413}
    for name, status in (
        ("stalled bodies", 408),
        ("half a head", 408),
        ("huge head", 431),
        ("huge trailers", 431),
        ("not HTTP", 400),
    ):
        assert set(report.answers[name]) == {status}, name
    assert report.answers["idle"]["closed"] >= IDLE - workers * MOST_CONNECTIONS - 100
    assert max(report.good_seconds) < 10
