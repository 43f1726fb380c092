"""Jobs, the Dataflow jobs behind them, their history, and what keeps two hands off them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Index,
    String,
    Text,
    false,
    text,
)
from sqlmodel import Field, SQLModel

from service.models.columns import ID_LENGTH, UtcDateTime

# A row that an earlier version of the program writes leaves the new columns out: the database fills them.
_NullableJson = JSON(none_as_null=True)


def _text_with_default(value: str) -> Any:
    return Field(default=value, sa_type=String(16), sa_column_kwargs={"server_default": value})


def _number_with_default(value: int) -> Any:
    return Field(default=value, sa_column_kwargs={"server_default": str(value)})


def _flag() -> Any:
    return Field(default=False, sa_type=Boolean, sa_column_kwargs={"server_default": false()})


class Job(SQLModel, table=True):
    """One request for a streaming job: what was asked for, and what Dataflow last said of it.

    `ended_at` is NULL as long as the job is active. `exclusive_subscription` repeats `subscription`
    and is NULL where sharing it was asked for, so that the unique index lets the job pass.
    `version` counts the changes: who read an older one writes nothing. `attempt` is the number of
    the attempt that stands for the job; its template, parameters and environment are repeated here.
    `pending_attempt` is the number of the one that is to replace it, while an update is under way.
    `min_workers` and `max_workers` are bounds that were asked for while the job ran, and
    `scaling_pending` says that Dataflow has not taken them yet. `missing_since` and `missing_looks`
    are kept for replicas of version 0.1; the attempts have their own.
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
        Index(
            "ix_jobs_ended",
            "created_at",
            "id",
            sqlite_where=text("ended_at IS NOT NULL"),
            postgresql_where=text("ended_at IS NOT NULL"),
        ),
        Index("ix_jobs_base_name", "base_name", "created_at", "id"),
        Index("ix_jobs_base_name_state", "base_name", "state", "created_at", "id"),
        Index("ix_jobs_pipeline", "pipeline", "created_at", "id"),
        Index("ix_jobs_pipeline_state", "pipeline", "state", "created_at", "id"),
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
    pending_attempt: int | None = Field(default=None)
    drain_requested_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    drain_deadline_seconds: int | None = Field(default=None)
    drain_deadline_from: datetime | None = Field(default=None, sa_type=UtcDateTime)
    on_drain_deadline: str = _text_with_default("wait")
    cancel_requested_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    force_cancel_requested_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    restart_policy: str = _text_with_default("never")
    restart_limit: int = _number_with_default(0)
    restarts: int = _number_with_default(0)
    restart_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    min_workers: int | None = Field(default=None)
    max_workers: int | None = Field(default=None)
    scaling_pending: bool = _flag()
    adopted: bool = _flag()


class Attempt(SQLModel, table=True):
    """One Dataflow job behind a job of ours; `dataflow_job_id` is NULL until the launch is answered.

    `ended_at` is NULL as long as the attempt is open: its end is not known, or what followed it is
    not. `kind` says why it was made, and `replaces` which attempt it follows. What is NULL of the
    launch is as the job has it. `missing_looks` counts the looks in a row that found nothing, the
    first of them at `missing_since`.
    """

    __tablename__ = "attempts"
    __table_args__ = (
        Index(
            "ix_attempts_open",
            "job_id",
            "number",
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
    )

    job_id: str = Field(primary_key=True, foreign_key="jobs.id", sa_type=String(ID_LENGTH))
    number: int = Field(primary_key=True)
    dataflow_job_id: str | None = Field(default=None, sa_type=String(128), unique=True)
    state: str = Field(sa_type=String(32))
    created_at: datetime = Field(sa_type=UtcDateTime)
    started_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    ended_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    error: str | None = Field(default=None, sa_type=Text)
    kind: str = _text_with_default("launch")
    replaces: int | None = Field(default=None)
    job_name: str | None = Field(default=None, sa_type=String(1024))
    launch_token: str | None = Field(default=None, sa_type=String(63))
    launch_started_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    template_path: str | None = Field(default=None, sa_type=String(1024))
    parameters: dict[str, str] | None = Field(default=None, sa_type=_NullableJson)
    environment: dict[str, Any] | None = Field(default=None, sa_type=_NullableJson)
    transform_name_mappings: dict[str, str] | None = Field(default=None, sa_type=_NullableJson)
    missing_since: datetime | None = Field(default=None, sa_type=UtcDateTime)
    missing_looks: int = _number_with_default(0)


class JobEvent(SQLModel, table=True):
    """One entry of a job's history; `sequence` is the version of the job that the change made."""

    __tablename__ = "job_events"

    job_id: str = Field(primary_key=True, foreign_key="jobs.id", sa_type=String(ID_LENGTH))
    sequence: int = Field(primary_key=True)
    at: datetime = Field(sa_type=UtcDateTime)
    kind: str = Field(sa_type=String(32))
    detail: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    actor: str = Field(sa_type=String(128))
    request_id: str | None = Field(default=None, sa_type=String(128))


class Lease(SQLModel, table=True):
    """A piece of work that one replica does at a time; free once `expires_at` has passed.

    `token` rises each time that another holder takes it: who holds an older one has lost it.
    """

    __tablename__ = "leases"

    name: str = Field(primary_key=True, sa_type=String(64))
    holder: str = Field(sa_type=String(64))
    token: int = Field(sa_type=BigInteger)
    expires_at: datetime = Field(sa_type=UtcDateTime)


class IdempotencyKey(SQLModel, table=True):
    """A request under its key: its answer, or until when one process may still be working on it."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("ix_idempotency_keys_created", "created_at"),)

    scope: str = Field(primary_key=True, sa_type=String(128))
    key: str = Field(primary_key=True, sa_type=String(200))
    request_hash: str = Field(sa_type=String(64))
    job_id: str | None = Field(default=None, sa_type=String(ID_LENGTH))
    status: int | None = Field(default=None)
    media_type: str | None = Field(default=None, sa_type=String(128))
    location: str | None = Field(default=None, sa_type=String(256))
    body: str | None = Field(default=None, sa_type=Text)
    created_at: datetime = Field(sa_type=UtcDateTime)
    locked_until: datetime = Field(sa_type=UtcDateTime)
