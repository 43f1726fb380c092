"""Settings: publishing, and the outbox behind it."""

from __future__ import annotations

from pydantic import BaseModel, Field


class Publishing(BaseModel):
    """Publishing, and the outbox behind it."""

    publish_linger_seconds: float = Field(0.005, ge=0, le=1, description="Longest wait for a batch to fill")
    publish_batch_messages: int = Field(1000, ge=1, le=1000, description="Most messages in one Publish call")
    publish_batch_bytes: int = Field(4_000_000, ge=1024, le=9_000_000, description="Most bytes in one call")
    publish_deadline_seconds: float = Field(10.0, gt=0, le=600, description="Deadline of one Publish call")
    publish_inflight_messages: int = Field(20_000, ge=1, description="Most events waiting for their id")
    publish_inflight_bytes: int = Field(64_000_000, ge=1024, description="Most bytes waiting for their id")
    publish_patience_seconds: float = Field(
        1.0, gt=0, le=60, description="Longest wait for one Publish call before its events go to the outbox"
    )
    breaker_failures: int = Field(
        3, ge=1, description="Failed Publish calls in a row after which events go straight to the outbox"
    )
    breaker_open_seconds: float = Field(
        1.0, gt=0, le=60, description="Time between two tries whether Pub/Sub is back"
    )
    outbox_max_rows: int = Field(1_000_000, ge=1, description="Most events in the outbox")
    outbox_max_bytes: int = Field(1_000_000_000, ge=1024, description="Most bytes of events in the outbox")
    outbox_deadline_seconds: float = Field(
        5.0, gt=0, le=60, description="Deadline of one commit of events to the outbox"
    )
