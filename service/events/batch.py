"""`POST /events/signin/batch`: many sign-ins in one body, published together, with a result for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec
from fastapi import Request, Response
from pydantic import BaseModel, Field

from service import bodies
from service.config import Settings
from service.errors import (
    BatchTooLargeError,
    DuplicateEventIdError,
    EmptyBatchError,
    InvalidBatchError,
    NotAnArrayError,
    ProblemError,
    UnsupportedMediaTypeError,
)
from service.event_ids import new_event_id
from service.events import context, documentation
from service.events.single import problem
from service.metrics import Metrics
from service.publisher import Publisher, Receipt
from transforms import signin_batch
from transforms.signin_batch import BatchSignin
from transforms.signin_event import SCHEMA_VERSION, EventError

PATH = bodies.BATCH_PATH


class ErrorOfEvent(msgspec.Struct):
    """Why one event was not taken."""

    code: str
    detail: str
    field: str | None
    retryable: bool


class Result(msgspec.Struct):
    """What became of one event."""

    index: int
    event_id: str | None
    status: str
    message_id: str | None = None
    error: ErrorOfEvent | None = None


class BatchError(BaseModel):
    """Why one event was not taken."""

    code: str = Field(description="A code of a single sign-in's errors, or `duplicate_event_id`")
    detail: str
    field: str | None
    retryable: bool = Field(description="Whether the same event may be taken later")


class BatchResult(BaseModel):
    """What became of one event."""

    index: int = Field(description="Its place in the array, or its line, from 0")
    event_id: str | None = Field(description="Send the same one again; null where the event is not valid")
    status: Literal["published", "spooled", "failed"]
    message_id: str | None = Field(description="The id that Pub/Sub gave it")
    error: BatchError | None


class BatchAnswer(BaseModel):
    """One result for each event, in the order of the body."""

    results: list[BatchResult]


_LINES = {"schema": {"type": "string"}, "example": '{"userid": "1", "date": "2017-10-17T20:57:17Z"}\n'}
_ARRAY = {
    "schema": {"type": "array", "minItems": 1, "items": documentation.SCHEMA},
    "example": [documentation.EXAMPLE],
}
DOCUMENTATION: dict[str, Any] = {
    "methods": ["POST"],
    "status_code": 202,
    "response_model": BatchAnswer,
    "response_description": "All events were taken",
    "responses": {
        207: {"model": BatchAnswer, "description": "Some events were taken, others were not"},
        **documentation.answers(NotAnArrayError, BatchTooLargeError, EmptyBatchError, InvalidBatchError),
    },
    "openapi_extra": documentation.request_extras(
        {"application/json": _ARRAY, "application/x-ndjson": _LINES},
        "Events without an event_id get `<key>:<index>`, the same ones when the batch is sent again",
        124,
    ),
}
_encode = msgspec.json.Encoder().encode


async def publish_batch(request: Request) -> Response:
    """Publish up to 1,000 sign-ins. Each result says where its event is safe, or why it was not taken."""
    headers: dict[bytes, bytes] = dict(request.scope["headers"])
    as_lines = is_lines(headers)
    settings: Settings = request.app.state.settings
    key = context.idempotency_key(headers, f":{settings.max_batch_events - 1}")
    decoded = decode(await bodies.read(request.scope, headers), settings, as_lines=as_lines)
    results, accepted = identified(decoded, key)
    messages = prepared(accepted, context.travelling(headers))
    publisher: Publisher = request.app.state.publisher
    outcomes = await publisher.publish_all(messages) if messages else []
    failures = record(results, accepted, outcomes)
    if failures or len(accepted) < len(results):
        metrics: Metrics = request.app.state.metrics
        metrics.events_refused(result.error.code for result in results if result and result.error)
    return answer(results, failures)


def is_lines(headers: Mapping[bytes, bytes]) -> bool:
    """Tells NDJSON from a JSON array by the content type. Raises UnsupportedMediaTypeError for others."""
    found = bodies.media_type(headers)
    if found not in (b"application/json", b"application/x-ndjson"):
        raise UnsupportedMediaTypeError("Send the batch as `application/json` or `application/x-ndjson`.")
    return found == b"application/x-ndjson"


def decode(body: bytes, settings: Settings, *, as_lines: bool) -> list[BatchSignin | EventError]:
    """The sign-ins of the body, or why one is none.

    Raises MalformedBodyError, NotAnArrayError, EmptyBatchError or BatchTooLargeError.
    """
    latest = datetime.now(UTC) + timedelta(seconds=settings.max_event_ahead_seconds)
    read = signin_batch.decode_lines if as_lines else signin_batch.decode_array
    try:
        decoded = read(body, settings.max_batch_events, latest)
    except EventError as error:
        if error.code == NotAnArrayError.code:
            raise NotAnArrayError(f"{error.detail}.") from None
        raise problem(error) from None
    except signin_batch.TooManyError as error:
        raise BatchTooLargeError(f"{error}.") from None
    if not decoded:
        raise EmptyBatchError("The batch is an empty array.")
    return decoded


def identified(
    decoded: Sequence[BatchSignin | EventError], key: str | None
) -> tuple[list[Result | None], list[tuple[int, BatchSignin]]]:
    """Gives each event its id; returns the results that are known already, and the events to publish."""
    results: list[Result | None] = [None] * len(decoded)
    accepted: list[tuple[int, BatchSignin]] = []
    seen: set[str] = set()
    for index, event in enumerate(decoded):
        if isinstance(event, EventError):
            error = ErrorOfEvent(event.code, f"{event.detail}.", event.field, retryable=False)
            results[index] = Result(index, None, "failed", None, error)
            continue
        event_id = event.event_id
        if event_id is None:
            event.event_id = event_id = new_event_id() if key is None else f"{key}:{index}"
        if event_id in seen:
            results[index] = Result(index, event_id, "failed", None, _duplicate())
            continue
        seen.add(event_id)
        accepted.append((index, event))
    return results, accepted


def prepared(
    accepted: Sequence[tuple[int, BatchSignin]], travelling: Mapping[str, str]
) -> list[tuple[bytes, Mapping[str, str]]]:
    """The messages of the events: canonical JSON and attributes, those of the request included."""
    encode = signin_batch.encode
    return [
        (
            encode(event),
            {
                "event_time": event.date,
                "schema_version": SCHEMA_VERSION,
                "event_id": event.event_id or "",
                **travelling,
            },
        )
        for _, event in accepted
    ]


def record(
    results: list[Result | None],
    accepted: Sequence[tuple[int, BatchSignin]],
    outcomes: Sequence[Receipt | ProblemError],
) -> list[ProblemError]:
    """Puts the outcome of publishing into `results`; returns the failures among them."""
    failures: list[ProblemError] = []
    for (index, event), outcome in zip(accepted, outcomes, strict=True):
        if isinstance(outcome, ProblemError):
            failures.append(outcome)
            error = ErrorOfEvent(outcome.problem_code, outcome.detail, None, outcome.retryable)
            results[index] = Result(index, event.event_id, "failed", None, error)
        else:
            results[index] = Result(index, event.event_id, outcome.status, outcome.message_id)
    return failures


def answer(results: Sequence[Result | None], failures: Sequence[ProblemError]) -> Response:
    """202 where every event was taken, 207 where some were.

    Where none was, raises the first failure that is retryable, else the first failure, else
    InvalidBatchError; each has the `results` as a member.
    """
    taken = sum(result is not None and result.error is None for result in results)
    if taken:
        status = 202 if taken == len(results) else 207
        return Response(_encode({"results": results}), status, media_type="application/json")
    detail = f"None of the {len(results)} events was taken; `results` says why."
    members = {"results": results}
    if not failures:
        raise InvalidBatchError(detail, members=members)
    first = next((failure for failure in failures if failure.retryable), failures[0])
    raise type(first)(
        detail,
        code=first.problem_code,
        retry_after_seconds=first.retry_after_seconds,
        members=members,
    )


def _duplicate() -> ErrorOfEvent:
    detail = "An earlier event of the batch has the same event_id."
    return ErrorOfEvent(DuplicateEventIdError.code, detail, "event_id", retryable=False)
