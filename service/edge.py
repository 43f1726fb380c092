"""The outermost layer of the application: request ids, bounds of bodies, the last handler of errors."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.bodies import Bodies
from service.errors import ProblemError, ShuttingDownError
from service.logs import current_request_id
from service.problems import rendered

log = logging.getLogger(__name__)

# What a caller may choose as the id of its request: it is logged and returned.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Edge:
    """ASGI middleware; each request has an `X-Request-ID`, the caller's or a new one, and gets it back.

    Bodies come through the bounds of `bodies`. Where the answer is there before the body's end, the
    connection ends with the answer: the rest is not read.
    """

    def __init__(self, app: ASGIApp, bodies: Bodies) -> None:
        self._app = app
        self._bodies = bodies
        self._prefix = os.urandom(4).hex().encode()
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = self._request_id(headers)
        current_request_id.set(request_id.decode())
        body = self._bodies.incoming(scope, headers, receive)
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
                if body and not body.complete:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            if body:
                body.require_fitting(headers.get(b"content-length"))
                receive = body.receive
            await self._app(scope, receive, send_with_id)
        except (Exception, asyncio.CancelledError) as error:
            if started:
                raise
            await rendered(_problem(error, scope), scope["path"])(scope, receive, send_with_id)
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            if body:
                body.release()

    def _request_id(self, headers: dict[bytes, bytes]) -> bytes:
        request_id = headers.get(b"x-request-id")
        if request_id and _REQUEST_ID.fullmatch(request_id):
            return request_id
        return b"%s%08x" % (self._prefix, next(self._numbers))


def _problem(error: BaseException, scope: Scope) -> ProblemError:
    """What a caller is told of an error that no handler took."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, asyncio.CancelledError):  # the server's patience at its end is over
        detail = "The service is shutting down; what was asked for may have happened all the same."
        return ShuttingDownError(detail, retry_after_seconds=1)
    log.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
    return ProblemError("The service failed; its log has the cause under this request's id.")
