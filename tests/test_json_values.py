"""Values of requests: taken as JSON Schema has them, not as pydantic would by itself."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import TypeAdapter, ValidationError

from service.dead_letters.view import NewReplay
from service.job_bodies import Drain, Scaling
from service.json_values import Moment


def test_a_whole_number_may_be_written_with_a_point_and_keeps_its_bounds():
    assert Drain.model_validate({"deadline_seconds": 226.0}).deadline_seconds == 226
    assert NewReplay.model_validate({"most_letters": 1e3}).most_letters == 1000
    for wrong in (0, 0.0, 1.5, "1", True):
        with pytest.raises(ValidationError):
            Scaling.model_validate({"min_workers": wrong})
    assert Scaling.model_json_schema()["properties"]["min_workers"]["anyOf"][0] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 1000,
    }


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02t03:04:05.25", datetime(2026, 1, 2, 3, 4, 5, 250_000, tzinfo=UTC)),
        ("2026-01-02T03:04:05+02:00", datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)),
    ],
)
def test_a_moment_is_an_rfc_3339_time_in_utc(text, moment):
    found = TypeAdapter(Moment).validate_python(text)
    assert (found, found.tzinfo) == (moment, UTC)


@pytest.mark.parametrize(
    "wrong", ["2026-01-02", "1767323045", 1767323045, "0001-01-01T00:00:00+01:00", "", None]
)
def test_what_is_no_rfc_3339_time_is_no_moment(wrong):
    with pytest.raises(ValidationError):
        TypeAdapter(Moment).validate_python(wrong)


@pytest.mark.parametrize("body", [{"dry_run": "yes"}, {"dry_run": 1}, {"most_letters": "5"}, {"since": 5}])
def test_a_replay_is_asked_for_in_the_right_types(body):
    with pytest.raises(ValidationError):
        NewReplay.model_validate(body)
