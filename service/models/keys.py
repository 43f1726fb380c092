"""API keys."""

from __future__ import annotations

import builtins
from datetime import datetime

from sqlalchemy import Index, LargeBinary, String
from sqlmodel import Field, SQLModel

from service.models.columns import ID_LENGTH, UtcDateTime


class ApiKey(SQLModel, table=True):
    """One API key, as far as the service knows it: never the secret, only what recognises it.

    `id` is the part of the key that may be shown, `scopes` are separated by spaces. `replaces` is the id
    of the key that it was rotated from. Rows are never deleted: that there is one closes the service.
    """

    __tablename__ = "api_keys"
    __table_args__ = (Index("ix_api_keys_name", "name"),)

    id: str = Field(primary_key=True, sa_type=String(16))
    name: str = Field(sa_type=String(64))
    scopes: str = Field(sa_type=String(256))
    salt: builtins.bytes = Field(sa_type=LargeBinary)
    digest: builtins.bytes = Field(sa_type=LargeBinary)
    created_at: datetime = Field(sa_type=UtcDateTime)
    expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    last_used_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    replaces: str | None = Field(default=None, sa_type=String(16))


class KeyEvent(SQLModel, table=True):
    """What became of an API key, and who did it: `created`, `replaced` by another, or `revoked`."""

    __tablename__ = "key_events"
    __table_args__ = (Index("ix_key_events_key", "key_id", "id"),)

    id: str = Field(primary_key=True, sa_type=String(ID_LENGTH))
    key_id: str = Field(sa_type=String(16))
    at: datetime = Field(sa_type=UtcDateTime)
    kind: str = Field(sa_type=String(16))
    actor: str = Field(sa_type=String(128))
