"""The bounds of a connection: the size of a request's head and trailers, the time a head may take, and how
many connections there are.

uvicorn with httptools has a bound for none of them. What is refused here gets the problem document that
the application would send, and the connection ends.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Collection
from typing import Any, NoReturn

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service import cycles
from service.config import Settings
from service.errors import (
    HeadersTooLargeError,
    MalformedRequestError,
    ProblemError,
    RequestTimeoutError,
    TooManyConnectionsError,
)
from service.lingering import LingeringTransport
from service.metrics import Metrics, families
from service.problems import rendered
from service.trailers import Trailers

SWEEP_SECONDS = 1.0
RETRY_AFTER_SECONDS = 1
UNREAD_SECONDS = 30.0  # so long may a caller take nothing of an answer that waits for it
MOST_LINGER_BYTES = 32_000_000
# A header costs some hundred bytes of memory however short it is: 8,000 of them fit into 32 KB.
MOST_HEADERS = 128
MOST_AHEAD = 32  # requests of a connection that wait for the answer to an earlier one
_OFFER = frozenset({b"connection", b"upgrade", b"http2-settings"})  # of another protocol


class Connections:
    """The connections of one process that wait for a request, the longest waiting first."""

    def __init__(self, settings: Settings, metrics: Metrics | None = None) -> None:
        self.metrics = metrics or Metrics()
        self.most = settings.max_connections
        self.max_header_bytes = settings.max_header_bytes
        self.header_deadline_seconds = settings.header_deadline_seconds
        self.is_ending = False  # then each answer is its connection's last
        self.waiting: dict[Connection, float] = {}
        self.all: Collection[Any] = ()  # uvicorn's own set, once there is a connection
        self.metrics.tells(families.CONNECTIONS, lambda: len(self.all))
        self.metrics.tells(families.CONNECTIONS_FILL, lambda: len(self.all) / self.most)
        self._alarm: asyncio.TimerHandle | None = None

    def protocol(self) -> Any:
        """What uvicorn takes for a protocol class."""
        return functools.partial(Connection, self)

    def wait(self, connection: Connection) -> None:
        """Notes that a connection waits for the head of a request from now on."""
        loop = connection.loop
        self.waiting[connection] = loop.time()
        if self._alarm is None:
            self._alarm = loop.call_later(SWEEP_SECONDS, self._sweep, loop)

    def make_room(self) -> bool:
        """Closes the connection that has waited longest; False where none waits."""
        for connection in self.waiting:
            del self.waiting[connection]
            connection.transport.close()
            return True
        return False

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ends those that are too late with a head that they owe, or do not take what is written to them."""
        now = loop.time()
        for connection, since in list(self.waiting.items()):
            if now - since > self.header_deadline_seconds and not connection.is_kept_alive:
                del self.waiting[connection]
                connection.give_up()
        for connection in list(self.all):
            connection.end_if_unread(now)
        self._alarm = loop.call_later(SWEEP_SECONDS, self._sweep, loop) if self.all else None


class Connection(HttpToolsProtocol):
    """uvicorn's connection with bounds. It is in `Connections.waiting` whenever it owes us a head."""

    def __init__(self, connections: Connections, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bounds = connections
        self._head_bytes = 0
        self._chunk_bytes = 0
        self._in_head = True
        self._trailers = Trailers()
        self._refusal: ProblemError | None = None
        self._discarded_bytes: int | None = None  # None while what comes is looked at
        self._unread: tuple[int, float] | None = (
            None  # least bytes that waited for the caller, and since when
        )
        self.is_kept_alive = False

    @property
    def has_unread_bytes(self) -> bool:
        """Whether the caller may still be sending what will not be read."""
        if self._refusal is not None or self._discarded_bytes is not None:
            return True
        return self.cycle is not None and self.cycle.more_body

    def discard_from_now_on(self) -> None:
        self._discarded_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(LingeringTransport(transport, self))  # type: ignore[arg-type]
        self._bounds.all = self.connections
        if len(self.connections) > self._bounds.most and not self._bounds.make_room():
            detail = f"This process holds {self._bounds.most} connections, and all are busy."
            self._refuse(TooManyConnectionsError(detail, retry_after_seconds=RETRY_AFTER_SECONDS))
            return
        self._bounds.wait(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._bounds.waiting.pop(self, None)
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        self._unread = None
        super().resume_writing()

    def end_if_unread(self, now: float) -> None:
        """Cuts off a caller that takes nothing; one that is slow has taken something since the last look.

        Only what nothing is added to tells that: an answer that has to wait, or a connection's last bytes.
        """
        if not self.flow.write_paused and not self.transport.is_closing():
            return
        size = self.transport.get_write_buffer_size()
        if self._unread is None or size < self._unread[0]:
            self._unread = (size, now)
        elif now - self._unread[1] > UNREAD_SECONDS:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._discarded_bytes is not None:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > MOST_LINGER_BYTES:
                self.transport.abort()
            return
        self._chunk_bytes = len(data)
        if self.is_kept_alive:  # the next request has begun
            self.is_kept_alive = False
            self._bounds.wait(self)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._begin_again(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self.send_400_response("")
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._bounds.max_header_bytes and not self._refusal:
                self._refuse(self._too_large())
            elif self.headers and len(self.headers) > MOST_HEADERS and not self._refusal:
                self._refuse(self._too_many())
        elif self._trailers.may_come and self._trailers.rest(data) > self._bounds.max_header_bytes:
            self._refuse(self._too_large("trailers"))

    def _should_upgrade(self) -> bool:
        return True  # asked for only where the request offers one: makes uvicorn leave it to us

    def _begin_again(self, rest: bytes) -> None:
        """Reads a request that offers an upgrade, as Java's client does with HTTP/2, again without the offer.

        httptools takes its body for the new protocol's and would leave the request without one.
        """
        if self.cycle and not self.cycle.response_complete:
            self._refuse(MalformedRequestError("An upgrade was offered before the last answer was there."))
            return
        if self.scope["method"] == "CONNECT":  # with or without an offer the parser takes it for one
            self._refuse(MalformedRequestError("This is no proxy: nothing is connected."))
            return
        head = [self.scope["method"].encode(), b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in self.headers:
            if name not in _OFFER:
                head += [name, b": ", value, b"\r\n"]
            elif name == b"connection" and b"close" in value.lower():
                head += [b"connection: close\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self.data_received(b"".join([*head, b"\r\n", rest]))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # as uvicorn has it, without a further call for each header
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))
        elif self._trailers.add(name, value) > self._bounds.max_header_bytes:
            self._stop_parsing(self._too_large("trailers"))

    def on_chunk_header(self) -> None:
        self._trailers.begin()

    def on_body(self, body: bytes) -> None:
        self._trailers.may_come = False
        super().on_body(body)

    def on_chunk_complete(self) -> None:
        self._trailers.may_come = False

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._bounds.waiting.pop(self, None)
        # The exact size is worth its price only where the bytes that came could hold too many.
        if self._head_bytes + self._chunk_bytes > self._bounds.max_header_bytes:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self._bounds.max_header_bytes:
                self._stop_parsing(self._too_large())
        if len(self.headers) > MOST_HEADERS:
            self._stop_parsing(self._too_many())
        if len(self.pipeline) >= MOST_AHEAD:
            self._take_no_more()
        super().on_headers_complete()
        if self.parser.should_upgrade():
            return  # it is read again, and has no cycle yet
        if self._bounds.is_ending:
            self.cycle.keep_alive = False
        self.scope[cycles.SCOPE_KEY] = self.cycle  # type: ignore[literal-required]

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:
            self.is_kept_alive = True
            self._bounds.wait(self)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """Answers a request that cannot be parsed, or whose head was refused while it was."""
        if self._discarded_bytes is None:  # else the last answer is still to come
            self._refuse(self._refusal or MalformedRequestError("The bytes that came are no HTTP request."))

    def give_up(self) -> None:
        """Ends a connection that owes a head: with an answer if one has begun, else without a word."""
        if self._head_bytes:
            self._refuse(RequestTimeoutError("The head of the request did not arrive in time."))
        else:
            self.transport.close()

    def _too_large(self, what: str = "request line and the headers") -> HeadersTooLargeError:
        return HeadersTooLargeError(f"The {what} may have at most {self._bounds.max_header_bytes} bytes.")

    def _too_many(self) -> HeadersTooLargeError:
        return HeadersTooLargeError(f"A request may have at most {MOST_HEADERS} headers.")

    def _stop_parsing(self, problem: ProblemError) -> NoReturn:
        """Ends the parsing from within it; `send_400_response` is what comes of it."""
        self._refusal = problem
        raise httptools.HttpParserError(problem.detail)

    def _take_no_more(self) -> NoReturn:
        """Lets the answer to the request before this one be the last: its caller sends the rest again.

        https://www.rfc-editor.org/rfc/rfc9112#section-9.3.2
        """
        self.cycle.keep_alive = False
        self.discard_from_now_on()
        raise httptools.HttpParserError("enough requests wait")

    def _refuse(self, problem: ProblemError) -> None:
        """Answers at once and closes; an answer that is under way is cut off, for nothing could follow it.

        What is wrong with the rest of a body is the application's to answer, which has its beginning.
        """
        self._refusal = problem
        self._bounds.waiting.pop(self, None)
        # A head that was read, and the line that the parser holds, would stay as long as the connection.
        self.headers = self.scope = self.parser = None  # type: ignore[assignment]
        if self.cycle is not None and cycles.break_off(self.cycle, problem):
            self.discard_from_now_on()
            return
        self._bounds.metrics.refused_connections.add(problem.problem_code)
        if self.cycle is None or self.cycle.response_complete:
            response = rendered(problem, "/", {"Connection": "close"})
            head = [b"HTTP/1.1 %d %s\r\n" % (problem.status, problem.title.encode())]
            head += [b"%s: %s\r\n" % header for header in response.raw_headers]
            self.transport.write(b"".join([*head, b"\r\n", bytes(response.body)]))
        self.transport.close()
