"""What the tables have in common: moments in UTC, and ids in the order of time."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

from sqlalchemy import DateTime, Dialect
from sqlalchemy.types import TypeDecorator

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford: nothing that is misread
ID_LENGTH = 20
SHORT_ID_LENGTH = 10


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC on both databases; a naive one is refused with ValueError.

    SQLite keeps no offset: there the text is UTC, and in the order of time.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def utc_now() -> datetime:
    return datetime.now(UTC)


def new_id(now: datetime) -> str:
    """A job id: 10 characters of milliseconds, then 10 (50 bits) of chance; text order is time order."""
    value = (int(now.timestamp() * 1000) << 50) | secrets.randbits(50)
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(5 * (ID_LENGTH - 1), -1, -5))
