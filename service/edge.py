"""The outermost layer of the application: request ids, limits of bodies, and the last handler of errors."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTimeoutError, BodyTooLargeError, ProblemError, ShuttingDownError
from service.logs import current_request_id
from service.problems import rendered

log = logging.getLogger(__name__)

BODY_DEADLINE_SECONDS = 10.0
# What a caller may choose as the id of its request: it is logged and returned.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Edge:
    """ASGI middleware; each request has an `X-Request-ID`, the caller's or a new one, and gets it back.

    A body longer than `max_body_bytes` is answered with 413 before it is read, or, where its length
    was not announced, as soon as that many bytes have come. One that has not come within
    `BODY_DEADLINE_SECONDS` is answered with 408.
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
        except asyncio.CancelledError:
            if not started:  # the server's patience at its end is over
                detail = "The service is shutting down; what was asked for may have happened all the same."
                ending = ShuttingDownError(detail, retry_after_seconds=1)
                await rendered(ending, scope["path"])(scope, receive, send_with_id)
            raise
        except Exception as error:
            if started:
                raise
            if not isinstance(error, ProblemError):
                log.exception("%s %s failed", scope["method"], scope["path"])
                error = ProblemError("The service failed; its log has the cause under this request's id.")
            await rendered(error, scope["path"])(scope, receive, send_with_id)

    def _bounded(self, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """`receive`, so that no more than the limit comes through it, and that in time.

        Raises BodyTooLargeError; what it returns raises BodyTimeoutError besides.
        """
        length = headers.get(b"content-length")
        if length is None and b"transfer-encoding" not in headers:
            return receive
        if length is not None and length.isdigit() and int(length) > self._max_body_bytes:
            raise self._too_large()
        until = asyncio.get_running_loop().time() + BODY_DEADLINE_SECONDS
        total = 0
        complete = False

        async def receive_bounded() -> Message:
            nonlocal total, complete
            if complete:
                return await receive()
            message = await _in_time(receive, until)
            total += len(message.get("body", b""))
            if total > self._max_body_bytes:
                raise self._too_large()
            complete = not message.get("more_body", False)
            return message

        return receive_bounded

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(f"The body may have at most {self._max_body_bytes} bytes.")


async def _in_time(receive: Receive, until: float) -> Message:
    """The next message, if it comes before `until` (loop time). Raises BodyTimeoutError."""
    task = asyncio.current_task()
    late = False

    def give_up() -> None:
        nonlocal late
        late = True
        if task:
            task.cancel()

    # asyncio.timeout does the same for three times the price, and nearly every body is here already.
    alarm = asyncio.get_running_loop().call_at(until, give_up)
    try:
        return await receive()
    except asyncio.CancelledError:
        if not late or not task:
            raise
        task.uncancel()
        raise BodyTimeoutError(f"The body did not arrive within {BODY_DEADLINE_SECONDS:g} s.") from None
    finally:
        alarm.cancel()
