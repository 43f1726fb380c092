"""Dead letters and replays as the HTTP interface shows them, and the body that asks for a replay."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from service.dead_letters.letters import Filters
from service.dead_letters.table import PREVIEW_BYTES, ReasonCount
from service.json_values import Moment, whole
from service.models import Replay

DEFAULT_MOST_LETTERS = 100_000
MOST_LETTERS = 1_000_000
REASON_PATTERN = "^[a-z][a-z0-9_]{0,63}$"
TEXT_PATTERN = r"^[^\x00-\x1f\x7f]*$"


Stage = Literal["decode", "validate", "write"]


class DeadLetterView(BaseModel):
    """A message that could not become a row."""

    failed_at: datetime
    stage: str
    reason: str
    detail: str | None
    payload: str = Field(description=f"The first {PREVIEW_BYTES} bytes of the message, in base64")
    payload_bytes: int = Field(description="How many bytes the table has of it")
    attributes: dict[str, str]
    message_id: str | None
    publish_time: datetime | None
    event_id: str | None
    pipeline_version: str | None
    job_id: str | None


class ReasonCountView(BaseModel):
    stage: str
    reason: str
    count: int


class DeadLetterPage(BaseModel):
    dead_letters: list[DeadLetterView] = Field(description="Newest first")
    counts: list[ReasonCountView] | None = Field(
        description="How many letters the filters let through, by reason; on the first page only"
    )
    next_page_token: str | None = Field(description="The `page_token` of the next page; null on the last")


class Narrowed(BaseModel):
    """What dead letters may be narrowed to."""

    reason: str | None = Field(None, pattern=REASON_PATTERN)
    stage: Stage | None = None
    since: Moment | None = Field(None, description="Those that failed then or later; RFC 3339")
    until: Moment | None = Field(None, description="Those that failed before")
    event_id: str | None = Field(None, min_length=1, max_length=1024, pattern=TEXT_PATTERN)
    message_id: str | None = Field(None, min_length=1, max_length=128, pattern=TEXT_PATTERN)

    def filters(self) -> Filters:
        return Filters(self.reason, self.stage, self.since, self.until, self.event_id, self.message_id)


class DeadLetterQuery(Narrowed):
    """The query of a list of dead letters."""

    page_size: int = Field(50, ge=1, le=200)
    page_token: str | None = Field(None, max_length=256)


class NewReplay(Narrowed):
    """Which dead letters to publish again; without a filter all of them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    dry_run: bool = Field(False, description="Count only; nothing is published or remembered")
    again: bool = Field(False, description="Also the letters that an earlier replay published")
    most_letters: Annotated[int, Field(ge=1, le=MOST_LETTERS), whole] = Field(
        DEFAULT_MOST_LETTERS, description="End when so many letters are published, or would be in a dry run"
    )

    def filters_before(self, now: datetime) -> Filters:
        """The filters. What fails from now on is left out: else a replay could chase its own failures."""
        until = min(self.until, now) if self.until else now
        return msgspec.structs.replace(self.filters(), until=until)


class ReplayView(BaseModel):
    """A replay and how far it has come. `read` = `replayed` + `repeated` + `unreplayable`."""

    id: str
    state: Literal["RUNNING", "DONE", "FAILED", "CANCELLED"]
    dry_run: bool
    again: bool
    filters: dict[str, Any]
    most_letters: int
    letters: int | None = Field(description="How many letters the filters let through; null until counted")
    read: int = Field(description="How many of them are dealt with")
    replayed: int = Field(description="Published, or safe in the outbox; in a dry run, those that would be")
    repeated: int = Field(description="Left out: replayed before, or copies of another letter")
    unreplayable: int = Field(description="Left out: the table has not the whole message")
    actor: str = Field(description="Who asked for it")
    request_id: str | None = Field(description="The `X-Request-ID` of the request that did")
    cancelled_by: str | None
    cause: str | None = Field(description="Why it failed, what it waits for, or why it left letters out")
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class ReplayPage(BaseModel):
    replays: list[ReplayView] = Field(description="Newest first")
    next_page_token: str | None = Field(description="The `page_token` of the next page; null on the last")


def show_letter(row: Mapping[str, Any]) -> DeadLetterView:
    """The letter of a row of `DeadLetterTable.page`."""
    payload = base64.b64encode(bytes.fromhex(row["payload"] or "")).decode()
    return DeadLetterView(**(dict(row) | {"payload": payload, "payload_bytes": row["payload_bytes"] or 0}))


def show_count(found: ReasonCount) -> ReasonCountView:
    return ReasonCountView(stage=found.stage, reason=found.reason, count=found.letters)


def show_replay(replay: Replay) -> ReplayView:
    return ReplayView(**replay.model_dump(include=set(ReplayView.model_fields)))


def stored(filters: Filters) -> dict[str, Any]:
    """The filters as the database keeps them."""
    built: dict[str, Any] = msgspec.to_builtins(filters)
    return built
