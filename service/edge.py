"""The outermost layer of the application: request ids, the body limit, and the last handler of errors."""

from __future__ import annotations

import itertools
import logging
import os
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLargeError, ProblemError
from service.logs import current_request_id
from service.problems import rendered

log = logging.getLogger(__name__)

# What a caller may choose as the id of its request: it is logged and returned.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Edge:
    """ASGI middleware; each request has an `X-Request-ID`, the caller's or a new one, and gets it back.

    A body longer than `max_body_bytes` is answered with 413 before it is read, or, where its length
    was not announced, as soon as that many bytes have come.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._prefix = os.urandom(4).hex().encode()
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = b"%s%08x" % (self._prefix, next(self._numbers))
        current_request_id.set(request_id.decode())
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            receive = self._bounded(headers, receive)
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if started:
                raise
            if not isinstance(error, ProblemError):
                log.exception("%s %s failed", scope["method"], scope["path"])
                error = ProblemError("The service failed; its log has the cause under this request's id.")
            await rendered(error, scope["path"])(scope, receive, send_with_id)

    def _bounded(self, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """`receive`, so that no more than the limit comes through it. Raises BodyTooLargeError."""
        length = headers.get(b"content-length")
        if length is not None and length.isdigit():
            if int(length) > self._max_body_bytes:
                raise self._too_large()
            return receive  # the server reads no more than was announced
        if length is None and b"transfer-encoding" not in headers:
            return receive
        total = 0

        async def receive_bounded() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self._max_body_bytes:
                raise self._too_large()
            return message

        return receive_bounded

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(f"The body may have at most {self._max_body_bytes} bytes.")
