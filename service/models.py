"""The tables of the metadata database: jobs with their attempts and history, the outbox, and API keys."""

from __future__ import annotations

import builtins
import secrets
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    text,
)
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

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


class Job(SQLModel, table=True):
    """One request for a streaming job: what was asked for, and what Dataflow last said of it.

    `ended_at` is NULL as long as the job is active. `exclusive_subscription` repeats `subscription`
    and is NULL where sharing it was asked for, so that the unique index lets the job pass.
    `version` counts the changes: who read an older one writes nothing. `missing_looks` counts the
    looks in a row that found nothing, the first of them at `missing_since`.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(
            "requested_state IN ('RUNNING', 'DRAINED', 'CANCELLED')", name="ck_jobs_requested_state"
        ),
        Index("ix_jobs_created", "created_at", "id"),
        Index(
            "ix_jobs_active",
            "created_at",
            "id",
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index(
            "uq_jobs_active_subscription",
            "exclusive_subscription",
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index("ix_jobs_base_name", "base_name", "created_at", "id"),
        Index("ix_jobs_state", "state", "created_at", "id"),
    )

    id: str = Field(primary_key=True, sa_type=String(ID_LENGTH))
    name: str = Field(sa_type=String(128), unique=True)
    base_name: str = Field(sa_type=String(128))
    pipeline: str = Field(sa_type=String(64))
    project: str = Field(sa_type=String(128))
    region: str = Field(sa_type=String(64))
    subscription: str | None = Field(default=None, sa_type=String(512))
    exclusive_subscription: str | None = Field(default=None, sa_type=String(512))
    template_path: str = Field(sa_type=String(1024))
    state: str = Field(sa_type=String(32))
    requested_state: str = Field(default="RUNNING", sa_type=String(16))
    launch_token: str = Field(sa_type=String(63))
    parameters: dict[str, str] = Field(default_factory=dict, sa_type=JSON)
    environment: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    labels: dict[str, str] = Field(default_factory=dict, sa_type=JSON)
    attempt: int = Field(default=1)
    cause: str | None = Field(default=None, sa_type=Text)
    created_at: datetime = Field(sa_type=UtcDateTime)
    launch_started_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    observed_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    ended_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    missing_since: datetime | None = Field(default=None, sa_type=UtcDateTime)
    missing_looks: int = Field(default=0)
    version: int = Field(default=0)


class Attempt(SQLModel, table=True):
    """One Dataflow job behind a job of ours; `dataflow_job_id` is NULL until the launch is answered."""

    __tablename__ = "attempts"

    job_id: str = Field(primary_key=True, foreign_key="jobs.id", sa_type=String(ID_LENGTH))
    number: int = Field(primary_key=True)
    dataflow_job_id: str | None = Field(default=None, sa_type=String(128), unique=True)
    state: str = Field(sa_type=String(32))
    created_at: datetime = Field(sa_type=UtcDateTime)
    started_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    ended_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    error: str | None = Field(default=None, sa_type=Text)


class JobEvent(SQLModel, table=True):
    """One entry of a job's history; `sequence` is the version of the job that the change made."""

    __tablename__ = "job_events"

    job_id: str = Field(primary_key=True, foreign_key="jobs.id", sa_type=String(ID_LENGTH))
    sequence: int = Field(primary_key=True)
    at: datetime = Field(sa_type=UtcDateTime)
    kind: str = Field(sa_type=String(32))
    detail: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    actor: str = Field(sa_type=String(128))


class OutboxEvent(SQLModel, table=True):
    """One event that was answered for and is not in the topic yet; the oldest has the least `id`.

    `attributes` is a JSON object of strings, `bytes` the size on the wire. Who publishes it holds it
    under `claimed_by` until `claimed_until`. A parked one was refused by Pub/Sub for good, for
    `parked_reason`, and waits for an operator.
    """

    __tablename__ = "outbox"
    __table_args__ = (
        Index(
            "ix_outbox_waiting",
            "id",
            sqlite_where=text("parked_at IS NULL"),
            postgresql_where=text("parked_at IS NULL"),
        ),
        Index("ix_outbox_count", "parked_at", "created_at", "bytes"),  # counts without reading the data
    )

    id: int | None = Field(
        default=None, primary_key=True, sa_type=BigInteger().with_variant(Integer(), "sqlite")
    )
    event_id: str = Field(sa_type=String(128))
    data: builtins.bytes = Field(sa_type=LargeBinary)
    attributes: str = Field(sa_type=Text)
    bytes: int
    created_at: datetime = Field(sa_type=UtcDateTime)
    attempts: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    claimed_until: datetime | None = Field(default=None, sa_type=UtcDateTime)
    claimed_by: str | None = Field(default=None, sa_type=String(64))
    parked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    parked_reason: str | None = Field(default=None, sa_type=Text)


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
