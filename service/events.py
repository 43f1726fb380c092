"""`POST /events/signin`: check the sign-in, publish it, and answer when Pub/Sub has it."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from service.config import Settings
from service.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    InvalidEventError,
    MalformedBodyError,
    ProblemError,
    PublishOverloadedError,
    PublishRefusedError,
    PublishUnavailableError,
    ShuttingDownError,
    UnsupportedMediaTypeError,
)
from service.event_ids import new_event_id
from service.problems import responses
from service.publisher import Publisher
from transforms import signin_event
from transforms.signin_event import EventError, SigninEvent

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_NOT_JSON = frozenset({"empty_body", "invalid_utf8", "invalid_json"})
_encode = msgspec.json.Encoder().encode

SCHEMA = {
    "type": "object",
    "title": "Signin",
    "required": ["userid", "date"],
    "additionalProperties": False,
    "properties": {
        "userid": {"type": "string", "minLength": 1, "maxLength": signin_event.MAX_USERID_CHARACTERS},
        "date": {
            "type": "string",
            "format": "date-time",
            "description": "RFC 3339; without an offset it means UTC",
        },
        "event_id": {
            "type": "string",
            "pattern": "^[A-Za-z0-9._:-]{1,128}$",
            "description": "Equal for all copies of one event; if absent, Idempotency-Key or a new UUIDv7",
        },
        "attributes": {
            "type": "object",
            "maxProperties": signin_event.MAX_ATTRIBUTES,
            "propertyNames": {"maxLength": signin_event.MAX_ATTRIBUTE_KEY_CHARACTERS},
            "additionalProperties": {
                "type": "string",
                "maxLength": signin_event.MAX_ATTRIBUTE_VALUE_CHARACTERS,
            },
        },
    },
}
EXAMPLE = {"userid": "93234234", "date": "2017-10-17T20:57:17.338320"}
_HEADERS = [
    ("Idempotency-Key", "The event_id of a body that has none"),
    ("traceparent", "W3C trace context; travels with the message"),
]


RESPONSES = responses(
    MalformedBodyError,
    BodyTimeoutError,
    BodyTooLargeError,
    UnsupportedMediaTypeError,
    InvalidEventError,
    PublishRefusedError,
    PublishUnavailableError,
    PublishOverloadedError,
    ShuttingDownError,
)
for _status, _codes in ((400, _NOT_JSON), (422, set(signin_event.REASONS) - _NOT_JSON)):
    RESPONSES[_status]["description"] = " ".join(
        f"`{code}`: {sentence}" for code, sentence in signin_event.REASONS.items() if code in _codes
    )


class PublishedEvent(BaseModel):
    """Pub/Sub has the event."""

    event_id: str
    status: Literal["published"] = Field(description="Where the event is safe")
    message_id: str = Field(description="The id that Pub/Sub gave it")


class RawRoute(APIRoute):
    """A documented route whose handler takes the request as it is: FastAPI's own parsing costs a third."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


router = APIRouter(route_class=RawRoute, tags=["events"])


@router.post(
    "/events/signin",
    status_code=202,
    response_model=PublishedEvent,
    responses=RESPONSES,
    openapi_extra={
        "parameters": [
            {
                "name": name,
                "in": "header",
                "required": False,
                "schema": {"type": "string"},
                "description": text,
            }
            for name, text in _HEADERS
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": SCHEMA, "example": EXAMPLE}},
        },
    },
)
async def publish_signin(request: Request) -> Response:
    """Publish one sign-in. 202 means that Pub/Sub has it; any other answer promises nothing."""
    headers: dict[bytes, bytes] = dict(request.scope["headers"])
    require_json(headers)
    event = identified(decode(await request.body(), request.app.state.settings), headers)
    publisher: Publisher = request.app.state.publisher
    try:
        message_id = await publisher.publish(
            signin_event.encode(event), signin_event.message_attributes(event, traceparent(headers))
        )
    except ProblemError as problem:
        problem.members["event_id"] = event.event_id  # a repetition under it is a copy, not another event
        raise
    answer = {"event_id": event.event_id, "status": "published", "message_id": message_id}
    return Response(_encode(answer), 202, media_type="application/json")


def require_json(headers: Mapping[bytes, bytes]) -> None:
    """Raises UnsupportedMediaTypeError unless the content type is application/json.

    An absent type is refused as well: a page in a browser can send such a body to any address without
    being asked, `application/json` it cannot.
    """
    content_type = headers.get(b"content-type", b"")
    if content_type == b"application/json":
        return
    if content_type.partition(b";")[0].strip().lower() != b"application/json":
        raise UnsupportedMediaTypeError("Send the sign-in with the header `Content-Type: application/json`.")


def decode(body: bytes, settings: Settings) -> SigninEvent:
    """The sign-in in `body`. Raises MalformedBodyError where it is not JSON, else InvalidEventError."""
    latest = datetime.now(UTC) + timedelta(seconds=settings.max_event_ahead_seconds)
    try:
        return signin_event.decode(body, unknown_fields="refuse", latest=latest)
    except EventError as error:
        raise _problem(error) from None


def identified(event: SigninEvent, headers: Mapping[bytes, bytes]) -> SigninEvent:
    """`event` with an event_id: its own, the caller's Idempotency-Key, or a new one."""
    if event.event_id is not None:
        return event
    key = headers.get(b"idempotency-key")
    event_id = new_event_id() if key is None else key.decode("latin-1")
    if key is not None and not signin_event.is_event_id(event_id):
        raise InvalidEventError(
            "Idempotency-Key must be 1 to 128 of A-Z a-z 0-9 . _ : -",
            code="event_id_invalid",
            members={"field": "Idempotency-Key"},
        )
    return SigninEvent(event.userid, event.date, event_id, event.attributes)


def traceparent(headers: Mapping[bytes, bytes]) -> str | None:
    """The caller's W3C trace context; one that is not well formed is ignored, as the standard says."""
    found = headers.get(b"traceparent")
    return found.decode() if found and _TRACEPARENT.fullmatch(found) else None


def _problem(error: EventError) -> ProblemError:
    problem = MalformedBodyError if error.code in _NOT_JSON else InvalidEventError
    members = {"field": error.field} if error.field else None
    return problem(f"{error.detail}.", code=error.code, members=members)
