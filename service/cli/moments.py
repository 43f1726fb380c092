"""Moments as people type them: a time, or how long ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from service.cli.terminal import fail

_AGE = re.compile(r"([0-9]{1,5})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment(text: str) -> datetime:
    """An RFC 3339 time, in UTC if it names no zone, or an age such as 12h; else ends the command."""
    if age := _AGE.fullmatch(text):
        return datetime.now(UTC) - timedelta(**{_UNITS[age[2]]: int(age[1])})
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        fail(f"{text} is neither an RFC 3339 time nor an age such as 30m, 12h or 7d", exit_code=2)
