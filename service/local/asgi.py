"""Requests and answers of an HTTP server as the messages of ASGI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_INSERT_BYTES = 16_000_000  # of one insertAll; Google's own bound is 10 MB


class BodyTooLargeError(ValueError):
    """A request's body is longer than is taken; the message is Google's sentence for it."""


async def read_body(receive: Receive, most: int) -> bytes:
    """The whole body. Raises BodyTooLargeError where it is longer than `most` bytes."""
    parts: list[bytes] = []
    size = 0
    while size <= most:
        message = await receive()
        part = bytes(message.get("body", b""))
        parts.append(part)
        size += len(part)
        if not message.get("more_body"):
            return b"".join(parts)
    raise BodyTooLargeError(f"Request payload size exceeds the limit: {most} bytes.")


def replay(body: bytes) -> Receive:
    """A request whose body is these bytes."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        return next(messages, {"type": "http.disconnect"})

    return receive


async def answer(send: Send, status: int, body: dict[str, Any]) -> None:
    """Answers with JSON."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(body)})
