"""`POST /events/signin`: check the sign-in, publish it, and answer when it is safe."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec
from fastapi import Request, Response
from pydantic import BaseModel, Field

from service import bodies
from service.config import Settings
from service.errors import InvalidEventError, MalformedBodyError, ProblemError
from service.event_ids import new_event_id
from service.events import context, documentation
from service.publisher import Publisher
from transforms import signin_event
from transforms.signin_event import EventError, SigninEvent

PATH = "/events/signin"
_encode = msgspec.json.Encoder().encode


class PublishedEvent(BaseModel):
    """Where the event is safe: in the topic, or in the outbox."""

    event_id: str
    status: Literal["published", "spooled"] = Field(
        description="In the topic, or in the outbox on its way there"
    )
    message_id: str | None = Field(description="The id that Pub/Sub gave it; null while it is spooled")


DOCUMENTATION: dict[str, Any] = {
    "methods": ["POST"],
    "status_code": 202,
    "response_model": PublishedEvent,
    "responses": documentation.answers(),
    "openapi_extra": documentation.request_extras(
        {"application/json": {"schema": documentation.SCHEMA, "example": documentation.EXAMPLE}},
        "The event_id of a body that has none",
        128,
    ),
}


async def publish_signin(request: Request) -> Response:
    """Publish one sign-in. 202 means that Pub/Sub or the outbox has it; any other answer promises nothing."""
    headers: dict[bytes, bytes] = dict(request.scope["headers"])
    bodies.require_json(headers)
    event = identified(decode(await bodies.read(request.scope, headers), request.app.state.settings), headers)
    attributes = signin_event.message_attributes(event)
    attributes.update(context.travelling(headers))
    publisher: Publisher = request.app.state.publisher
    try:
        receipt = await publisher.publish(signin_event.encode(event), attributes)
    except ProblemError as problem:
        problem.members["event_id"] = event.event_id  # a repetition under it is a copy, not another event
        raise
    answer = {"event_id": event.event_id, "status": receipt.status, "message_id": receipt.message_id}
    return Response(_encode(answer), 202, media_type="application/json")


def decode(body: bytes, settings: Settings) -> SigninEvent:
    """The sign-in in `body`. Raises MalformedBodyError where it is not JSON, else InvalidEventError."""
    latest = datetime.now(UTC) + timedelta(seconds=settings.max_event_ahead_seconds)
    try:
        return signin_event.decode(body, unknown_fields="refuse", latest=latest)
    except EventError as error:
        raise problem(error) from None


def identified(event: SigninEvent, headers: Mapping[bytes, bytes]) -> SigninEvent:
    """`event` with an event_id: its own, the caller's Idempotency-Key, or a new one."""
    key = context.idempotency_key(headers)  # judged also where it is not needed
    if event.event_id is not None:
        return event
    return SigninEvent(event.userid, event.date, key or new_event_id(), event.attributes)


def problem(error: EventError) -> ProblemError:
    """The answer for a body that is no sign-in: 400 where it is not JSON, else 422."""
    kind = MalformedBodyError if error.code in documentation.NOT_JSON else InvalidEventError
    members = {"field": error.field} if error.field else None
    return kind(f"{error.detail}.", code=error.code, members=members)
