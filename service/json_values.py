"""Values of requests as JSON Schema has them, where pydantic by itself takes more or less."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BeforeValidator

from transforms import timestamps


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _moment(value: Any) -> datetime:
    if not isinstance(value, str):
        raise ValueError("not an RFC 3339 time")  # noqa: TRY004 - pydantic tells of these alone
    return datetime.fromisoformat(timestamps.canonical(value)).astimezone(UTC)


# JSON has one kind of number: 3.0 is an integer. It stands behind the bounds, or the schema would lose them.
whole = BeforeValidator(_whole)
# RFC 3339; without an offset it means UTC, and is in UTC then.
Moment = Annotated[datetime, BeforeValidator(_moment)]
