"""Events that were answered for and wait for Pub/Sub."""

from __future__ import annotations

import builtins
from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    text,
)
from sqlmodel import Field, SQLModel

from service.models.columns import UtcDateTime


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
