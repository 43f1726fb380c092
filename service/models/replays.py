"""Replays of dead letters."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Index,
    String,
    Text,
    text,
)
from sqlmodel import Field, SQLModel

from service.models.columns import ID_LENGTH, UtcDateTime


class Replay(SQLModel, table=True):
    """One request to publish dead letters again, and how far it has come.

    `slot` is the same for all, so that the unique index lets only one be active. The process that works on it
    holds it under `claimed_by` until `claimed_until`. Letters up to `position_skip` of the moment
    `position_at` are dealt with: `read` of them, as `replayed`, `repeated` (replayed before, or a copy of
    another letter) or `unreplayable`.
    """

    __tablename__ = "replays"
    __table_args__ = (
        Index(
            "uq_replays_active",
            "slot",
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index("ix_replays_created", "created_at", "id"),
    )

    id: str = Field(primary_key=True, sa_type=String(ID_LENGTH))
    slot: int = Field(default=1)
    state: str = Field(sa_type=String(16))
    dry_run: bool
    again: bool
    filters: dict[str, Any] = Field(sa_type=JSON)
    most_letters: int
    letters: int | None = Field(default=None)
    read: int = Field(default=0)
    replayed: int = Field(default=0)
    repeated: int = Field(default=0)
    unreplayable: int = Field(default=0)
    position_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    position_skip: int = Field(default=0)
    cause: str | None = Field(default=None, sa_type=Text)
    actor: str = Field(sa_type=String(128))
    request_id: str | None = Field(default=None, sa_type=String(128))
    cancelled_by: str | None = Field(default=None, sa_type=String(128))
    created_at: datetime = Field(sa_type=UtcDateTime)
    started_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    ended_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    claimed_until: datetime | None = Field(default=None, sa_type=UtcDateTime)
    claimed_by: str | None = Field(default=None, sa_type=String(64))


class ReplayedLetter(SQLModel, table=True):
    """A dead letter that a replay has published, in the same transaction as its event went to the outbox."""

    __tablename__ = "replayed_letters"

    letter_key: str = Field(primary_key=True, sa_type=String(32))
    replay_id: str = Field(primary_key=True, sa_type=String(ID_LENGTH))
    at: datetime = Field(sa_type=UtcDateTime)
