"""Bodies of requests: how much of them is read, for how long, and what their Content-Encoding hides.

Every request with a body gets a `Body`, through which alone its bytes come. Three bounds hold: the
route's cap, for the bytes on the wire and for the unpacked ones; a deadline for the whole body; and a
budget for the bytes of all bodies at once, held until their requests are answered.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope

from service import cycles
from service.config import Settings
from service.errors import (
    BodiesOverloadedError,
    BodyTimeoutError,
    BodyTooLargeError,
    InvalidEncodingError,
    UnsupportedMediaTypeError,
)

RETRY_AFTER_SECONDS = 1
BATCH_PATH = "/events/signin/batch"
_SCOPE_KEY = "signin.body"
# One look at all bodies that are under way costs less than an alarm for each: nearly all are here already.
_SWEEP_SECONDS = 0.5
# Bodies that come in one piece of at most this size are gone again before anything else happens.
_UNCOUNTED_BYTES = 16 * 1024
# The gzip format may hold a thousandfold, so the output is asked for in pieces.
_GZIP_STEP_BYTES = 256 * 1024
_GZIP_WBITS = 31
_PLAIN = (b"", b"identity")  # what says that a body is as it is
# A Zstandard block may hold 128 KB in 4 bytes, and the library gives all that its input holds: 64 bytes
# of input are at most 2 MB of output. https://www.rfc-editor.org/rfc/rfc8878#section-3.1.1.2
_ZSTD_STEP_BYTES = 64
_ZSTD_WINDOW_BYTES = 8 * 1024 * 1024


class Bodies:
    """The caps of the routes, and the budget that all bodies of this process share."""

    def __init__(self, settings: Settings) -> None:
        self.deadline_seconds = settings.body_deadline_seconds
        self.free_bytes = settings.max_bodies_bytes
        self._cap = settings.max_body_bytes
        self._batch_cap = settings.max_batch_body_bytes
        self.expected: dict[Body, asyncio.Task[object]] = {}
        self._sweep_seconds = min(_SWEEP_SECONDS, self.deadline_seconds / 4)
        self._alarm: asyncio.TimerHandle | None = None

    def expect(self, body: Body) -> asyncio.Task[object]:
        """Sees to it that the current task is cancelled if the body is late; `body.is_late` tells why."""
        task = asyncio.current_task()
        assert task
        self.expected[body] = task
        if self._alarm is None:
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_later(self._sweep_seconds, self._sweep, loop)
        return task

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for body, task in list(self.expected.items()):
            if now > body.until:
                body.is_late = True
                task.cancel()
        self._alarm = loop.call_later(self._sweep_seconds, self._sweep, loop) if self.expected else None

    def incoming(self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive) -> Body | None:
        """The body of a request, before any of it is read; None where no bound can touch it.

        That is where there is none, or where it came along with the head and is small.
        """
        if headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
            return None
        if b"content-encoding" not in headers:
            data = cycles.whole_body(scope)
            if data is not None and len(data) <= min(_UNCOUNTED_BYTES, self._cap):
                scope[_SCOPE_KEY] = data
                return None
        body = Body(self, scope, receive, self._batch_cap if scope["path"] == BATCH_PATH else self._cap)
        scope[_SCOPE_KEY] = body
        return body


class Body:
    """The body of one request; `receive` is the bounded ASGI channel to it."""

    __slots__ = ("_bodies", "_counted", "_receive", "_scope", "_total", "cap", "complete", "is_late", "until")

    def __init__(self, bodies: Bodies, scope: Scope, receive: Receive, cap: int) -> None:
        self.cap = cap
        self.complete = False
        self._bodies = bodies
        self._scope = scope
        self._receive = receive
        self._total = 0
        self._counted = 0
        self.is_late = False
        self.until = asyncio.get_running_loop().time() + bodies.deadline_seconds

    def require_fitting(self, length: bytes | None) -> None:
        """Raises BodyTooLargeError where the announced length (Content-Length) is beyond the cap."""
        if length is not None and length.isdigit() and int(length) > self.cap:
            raise too_large(self.cap)

    async def receive(self) -> Message:
        """The next ASGI message.

        Raises BodyTooLargeError, BodyTimeoutError, BodiesOverloadedError or, for what is no body at all,
        HeadersTooLargeError (of trailers) and MalformedRequestError.
        """
        if self.complete:
            return await self._receive()
        message = await self._in_time()
        if problem := cycles.breach(self._scope):
            raise problem
        size = len(message.get("body", b""))
        self._total += size
        if self._total > self.cap:
            raise too_large(self.cap)
        self.complete = not message.get("more_body", False)
        if not self.complete or size > _UNCOUNTED_BYTES:
            self._count(size)
        return message

    async def read(self) -> bytes:
        """All bytes as they were sent. Raises ClientDisconnect besides what `receive` raises."""
        pieces: list[bytes] = []
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            pieces.append(message["body"])
            if self.complete:
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def unpacked(self, data: bytes, encoding: bytes) -> bytes:
        """`data` without its Content-Encoding; raises what `unpack` raises and BodiesOverloadedError."""
        unpacked = unpack(data, encoding, self.cap)
        self._count(len(unpacked))
        return unpacked

    def release(self) -> None:
        """Gives the bytes back to the budget, when the request is answered."""
        self._bodies.free_bytes += self._counted
        self._counted = 0

    def _count(self, size: int) -> None:
        if size > self._bodies.free_bytes:
            raise BodiesOverloadedError(
                "The bodies that are under way fill the memory that is set aside for them.",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self._bodies.free_bytes -= size
        self._counted += size

    async def _in_time(self) -> Message:
        """The next message, if it comes before the deadline. Raises BodyTimeoutError."""
        task = self._bodies.expect(self)
        try:
            return await self._receive()
        except asyncio.CancelledError:
            if not self.is_late:
                raise
            task.uncancel()
            seconds = self._bodies.deadline_seconds
            raise BodyTimeoutError(f"The body did not arrive within {seconds:g} s.") from None
        finally:
            self._bodies.expected.pop(self, None)


async def read(scope: Scope, headers: Mapping[bytes, bytes]) -> bytes:
    """The body of a request, unpacked; empty where there is none.

    Raises UnsupportedMediaTypeError, InvalidEncodingError, ClientDisconnect or what `Body.receive` raises.
    """
    body: Body | bytes | None = scope.get(_SCOPE_KEY)
    if isinstance(body, bytes):
        return body
    encoding = headers.get(b"content-encoding")
    if encoding is not None:
        encoding = known_encoding(encoding)  # before anything is read
    if body is None:
        return b""
    data = await body.read()
    return body.unpacked(data, encoding) if encoding and data else data


def known_encoding(encoding: bytes) -> bytes:
    """The Content-Encoding in its one spelling, empty for identity. Raises UnsupportedMediaTypeError."""
    name = encoding.strip().lower()
    if name in (b"gzip", b"x-gzip"):
        return b"gzip"
    if name == b"zstd":
        return name
    if name in _PLAIN:
        return b""
    raise UnsupportedMediaTypeError("The Content-Encoding may be gzip or zstd, or be left out.")


def require_plain(headers: Mapping[bytes, bytes]) -> None:
    """Raises UnsupportedMediaTypeError where a body is packed, for routes that do not unpack it."""
    if headers.get(b"content-encoding", b"").strip().lower() not in _PLAIN:
        raise UnsupportedMediaTypeError("Only sign-ins may have a Content-Encoding: send the body as it is.")


def media_type(headers: Mapping[bytes, bytes]) -> bytes:
    """The content type without its parameters, in lower case; empty where there is none."""
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower()


def require_json(headers: Mapping[bytes, bytes]) -> None:
    """Raises UnsupportedMediaTypeError unless the content type is application/json.

    An absent type is refused as well: a page in a browser can send such a body to any address without
    being asked, `application/json` it cannot.
    """
    if headers.get(b"content-type") == b"application/json":
        return
    if media_type(headers) != b"application/json":
        raise UnsupportedMediaTypeError("Send the body with the header `Content-Type: application/json`.")


def json_only(request: Request) -> None:
    """`require_json` as what a route depends on."""
    require_json(dict(request.scope["headers"]))


def unpack(data: bytes, encoding: bytes, cap: int) -> bytes:
    """What `data` holds, if that is one whole stream of at most `cap` bytes; `encoding` is gzip or zstd.

    No more than 2 MB beyond the cap are ever made, whatever the stream promises. Raises
    BodyTooLargeError and InvalidEncodingError.
    """
    return _gunzip(data, cap) if encoding == b"gzip" else _unzstd(data, cap)


def too_large(cap: int) -> BodyTooLargeError:
    """The error for a body of more than `cap` bytes, on the wire or unpacked."""
    return BodyTooLargeError(f"The body may have at most {cap} bytes.")


def _gunzip(data: bytes, cap: int) -> bytes:
    stream = zlib.decompressobj(_GZIP_WBITS)
    pieces: list[bytes] = []
    total = 0
    try:
        while not stream.eof:
            piece = stream.decompress(data, _GZIP_STEP_BYTES)
            data = stream.unconsumed_tail
            pieces.append(piece)
            total += len(piece)
            if total > cap:
                raise too_large(cap)
            if not piece and not data and not stream.eof:
                raise InvalidEncodingError("The gzip stream ends too early.")
    except zlib.error:
        raise InvalidEncodingError("The body is not a gzip stream.") from None
    if stream.unused_data:
        raise InvalidEncodingError("Something follows the end of the gzip stream.")
    return b"".join(pieces)


def _unzstd(data: bytes, cap: int) -> bytes:
    import zstandard

    stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
    pieces: list[bytes] = []
    total = 0
    position = 0
    try:
        while not stream.eof and position < len(data):
            pieces.append(stream.decompress(data[position : position + _ZSTD_STEP_BYTES]))
            position += _ZSTD_STEP_BYTES
            total += len(pieces[-1])
            if total > cap:
                raise too_large(cap)
    except zstandard.ZstdError:
        raise InvalidEncodingError("The body is not a Zstandard frame with a window up to 8 MB.") from None
    if not stream.eof:
        raise InvalidEncodingError("The Zstandard frame ends too early.")
    if stream.unused_data or position < len(data):
        raise InvalidEncodingError("Something follows the end of the Zstandard frame.")
    return b"".join(pieces)
