"""The outermost layer of the application: request ids, bounds of bodies, the last handler of errors.

It also knows a short way for the busiest routes: their endpoints are called without the framework's
layers and its router, which cost more than the endpoints do.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import answer_headers, cycles, problems
from service.answer_headers import Headers
from service.audit import Audit
from service.auth import Guard
from service.bodies import Bodies, Body, require_plain
from service.errors import ProblemError, ShuttingDownError
from service.logs import current_request_id
from service.metrics import Metrics
from transforms.trace_context import current_traceparent

if TYPE_CHECKING:
    from service.spans import RequestSpan, Traces

log = logging.getLogger(__name__)

# What a caller may choose as the id of its request: it is logged and returned.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

Endpoint = Callable[[Request], Awaitable[Response]]


class Edge:
    """ASGI middleware; each request has an `X-Request-ID`, the caller's or a new one, and gets it back.

    Bodies come through the bounds of `bodies`. Where the answer is there before the body's end, the
    connection ends with the answer: the rest is not read. Nothing comes in past the `guard`. A POST to a
    path of `endpoints` goes to its endpoint at once, everything else to `app`.
    """

    def __init__(
        self,
        app: ASGIApp,
        bodies: Bodies,
        endpoints: Mapping[str, Endpoint] = MappingProxyType({}),
        metrics: Metrics | None = None,
        guard: Guard | None = None,
        traces: Traces | None = None,
    ) -> None:
        self._metrics = metrics or Metrics()
        self._guard = guard
        self._audit = Audit()
        self._traces = traces
        self._app = app
        self._bodies = bodies
        self._endpoints = endpoints
        self._prefix = os.urandom(4).hex().encode()
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = time.perf_counter()
        if scope["method"] == "HEAD":
            scope = _as_get(scope)
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = self._request_id(headers)
        current_request_id.set(request_id.decode())
        span = self._traces.request(scope, headers) if self._traces else None
        if span is None and (parent := headers.get(b"traceparent")):
            current_traceparent.set(parent.decode("latin-1"))
        body = self._bodies.incoming(scope, headers, receive)
        answer = Answer(send, request_id, body)
        try:
            if self._guard:
                answer.headers += await self._guard.admit(scope, headers)
            if body:
                body.require_fitting(headers.get(b"content-length"))
                receive = body.receive
            endpoint = self._endpoints.get(scope["path"]) if scope["method"] == "POST" else None
            if endpoint is None:
                if body:
                    require_plain(headers)
                await self._app(scope, receive, answer)
            else:
                await answer.give(await endpoint(Request(scope, receive)), scope, receive)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the last handler
            await self._settle(error, scope, receive, answer)
        finally:
            self._metrics.request_answered(scope, answer.status, time.perf_counter() - started_at)
            self._tell(scope, answer, span)
            if body:
                body.release()

    def _tell(self, scope: Scope, answer: Answer, span: RequestSpan | None) -> None:
        """Tells the audit log and the trace what became of a request."""
        if scope["path"] not in self._endpoints:
            self._audit.answered(scope, answer.status, answer.sent)
        if span:
            span.end(scope, answer.status)

    async def _settle(self, error: BaseException, scope: Scope, receive: Receive, answer: Answer) -> None:
        """Sees to it that a request that broke has an answer, and that the server knows what it must know."""
        if isinstance(error, ClientDisconnect):
            log.debug("the caller went away")
            return
        if answer.ended and isinstance(error, Exception):
            return  # the framework has logged and answered it, and raises it once more
        if answer.started:
            raise error
        problem = _problem(error, scope)
        self._metrics.problem_answered(scope, problem.problem_code)
        if problem.status in (401, 403):
            self._audit.refused(scope, problem.status, problem.problem_code)
        await problems.answer_to(scope, problem)(scope, receive, answer)
        if isinstance(error, asyncio.CancelledError):
            raise error

    def _request_id(self, headers: dict[bytes, bytes]) -> bytes:
        request_id = headers.get(b"x-request-id")
        if request_id and _REQUEST_ID.fullmatch(request_id):
            return request_id
        return b"%s%08x" % (self._prefix, next(self._numbers))


class Answer:
    """The ASGI channel of one answer; it adds what every answer carries, and knows how far it has come."""

    __slots__ = ("_body", "_send", "ended", "headers", "sent", "started", "status")

    def __init__(self, send: Send, request_id: bytes, body: Body | None) -> None:
        self._send = send
        self.headers: Headers = ((b"x-request-id", request_id), answer_headers.NO_SNIFFING)
        self._body = body
        self.sent: Sequence[answer_headers.Header] = ()
        self.started = False
        self.status = 499  # while there is none: the caller went away
        self.ended = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            message["headers"] = [
                *message["headers"],
                *self.headers,
                *answer_headers.missing(message["headers"]),
            ]
            self.sent = message["headers"]
            if self._body and not self._body.complete:
                message["headers"].append((b"connection", b"close"))
        await self._send(message)
        if message["type"] == "http.response.body":
            self.ended = not message.get("more_body", False)

    async def give(self, response: Response, scope: Scope, receive: Receive) -> None:
        """Sends a response that has a Content-Length, in one piece where the connection can take it."""
        is_read = self._body is None or self._body.complete
        if is_read and cycles.answer(scope, response, (*self.headers, *answer_headers.ALL)):
            self.status = response.status_code
        else:
            await response(scope, receive, self)


def _as_get(scope: Scope) -> Scope:
    """A HEAD as its GET: the server leaves the body out. It never becomes a stream, which would not end."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"accept"]
    return {**scope, "method": "GET", "headers": headers}


def _problem(error: BaseException, scope: Scope) -> ProblemError:
    """What a caller is told of an error that no handler of the framework took."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, asyncio.CancelledError):  # the server's patience at its end is over
        detail = "The service is shutting down; what was asked for may have happened all the same."
        return ShuttingDownError(detail, retry_after_seconds=1)
    return problems.of_failure(error, scope["method"], scope["path"])
