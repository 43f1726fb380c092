"""A load generator in a process of its own: keep-alive connections that send one request after another.

`python -m tests.benchmarks.ingest_load < plan` reads a `Plan` as msgpack and writes a `Samples`. It knows
just enough HTTP for our own answers (a Content-Length in each), and costs about 15 µs a request where
httpx costs 1,400, so that what is measured is the server.
"""

from __future__ import annotations

import asyncio
import math
import re
import subprocess
import sys
import time
from array import array

import msgspec
import uvloop

CONNECT_SECONDS = 5.0
PATIENCE_SECONDS = 20.0
LAST_SECONDS = 10.0
PAUSE_SECONDS = 0.01
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Plan(msgspec.Struct):
    """What to send: `connections` callers send `request` for `seconds`, each one request at a time.

    `rate` is the most requests a second over all callers; 0 means as fast as answers come.
    """

    host: str
    port: int
    request: bytes
    connections: int
    seconds: float
    rate: float = 0.0


class Samples(msgspec.Struct):
    """One entry for each answer, as arrays: when it came (monotonic s), after how long (s), HTTP status.

    Status 0 is a connection that broke or stayed silent.
    """

    began: float
    ended: float
    at: bytes
    took: bytes
    status: bytes

    def between(self, first: float, last: float) -> Samples:
        """The answers that came between two moments."""
        at, took, status = self.arrays()
        chosen = [index for index, when in enumerate(at) if first <= when < last]
        return Samples(
            max(first, self.began),
            min(last, self.ended),
            array("d", (at[index] for index in chosen)).tobytes(),
            array("d", (took[index] for index in chosen)).tobytes(),
            array("H", (status[index] for index in chosen)).tobytes(),
        )

    def arrays(self) -> tuple[array[float], array[float], array[int]]:
        at, took, status = array("d"), array("d"), array("H")
        at.frombytes(self.at)
        took.frombytes(self.took)
        status.frombytes(self.status)
        return at, took, status

    def good(self) -> int:
        return sum(200 <= status < 300 for status in self.arrays()[2])

    def rate(self) -> float:
        """Answers with 2xx a second, those that came after the end not counted."""
        at, _, status = self.arrays()
        good = sum(200 <= code < 300 and when <= self.ended for when, code in zip(at, status, strict=True))
        return good / (self.ended - self.began)

    def statuses(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for status in self.arrays()[2]:
            counts[str(status)] = counts.get(str(status), 0) + 1
        return counts

    def percentile_ms(self, percent: float) -> float:
        """Latency of all answers that came, good or not."""
        return percentile(sorted(self.arrays()[1]), percent) * 1000


def percentile(ordered: list[float], percent: float) -> float:
    """The smallest value that `percent` of the ordered values do not exceed; NaN where there is none."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def request_bytes(path: str, body: bytes, content_type: str = "application/json") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {content_type}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


class Caller(asyncio.Protocol):
    """One connection: sends a request, waits for its whole answer, notes both, sends the next."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._buffer = b""
        self._sent = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        self._crowd.callers.add(self)
        self._next()

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._buffer, 0, end)
        if len(self._buffer) < end + 4 + (int(length[1]) if length else 0):
            return
        status = int(self._buffer[9:12])
        closes = b"connection: close" in self._buffer[:end].lower()
        self._buffer = b""
        self._crowd.note(self._sent, status)
        self._sent = 0.0
        if closes:
            self.close()
        else:
            self._next()

    def connection_lost(self, _error: Exception | None) -> None:
        self._crowd.callers.discard(self)
        if self._sent and not self._crowd.over:
            self._crowd.note(self._sent, 0)
        self._crowd.replace()

    def close(self) -> None:
        self._sent = 0.0
        if self._transport:
            self._transport.close()

    @property
    def is_waiting(self) -> bool:
        return bool(self._sent)

    def is_stuck(self, now: float) -> bool:
        return bool(self._sent) and now - self._sent > PATIENCE_SECONDS

    def abort(self) -> None:
        if self._transport:
            self._transport.abort()

    def _next(self) -> None:
        wait = self._crowd.wait()
        if wait > 0:
            asyncio.get_running_loop().call_later(wait, self._send)
        else:
            self._send()

    def _send(self) -> None:
        if not self._crowd.over and self._transport and not self._transport.is_closing():
            self._sent = time.monotonic()
            self._transport.write(self._crowd.plan.request)


class Crowd:
    """All callers of one plan and what they saw."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.over = False
        self.callers: set[Caller] = set()
        self._at, self._took, self._status = array("d"), array("d"), array("H")
        self._turn = 0.0
        self._replacing: set[asyncio.Task[None]] = set()

    def note(self, sent: float, status: int) -> None:
        now = time.monotonic()
        self._at.append(now)
        self._took.append(now - sent)
        self._status.append(status)

    def _waiting(self) -> int:
        return sum(caller.is_waiting for caller in self.callers)

    def wait(self) -> float:
        """Seconds until the next request may be sent, so that all callers together keep to the rate."""
        if not self.plan.rate:
            return 0.0
        now = time.monotonic()
        self._turn = max(self._turn + 1 / self.plan.rate, now - 0.1)
        return self._turn - now

    def replace(self) -> None:
        if not self.over:
            task = asyncio.get_running_loop().create_task(self._connect())
            self._replacing.add(task)
            task.add_done_callback(self._replacing.discard)

    async def _connect(self) -> None:
        while not self.over:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await asyncio.get_running_loop().create_connection(
                        lambda: Caller(self), self.plan.host, self.plan.port
                    )
            except OSError:
                await asyncio.sleep(0.05)
            else:
                return

    async def run(self) -> Samples:
        began = time.monotonic()
        self._turn = began
        for _ in range(self.plan.connections):
            self.replace()
        until = began + self.plan.seconds
        while (now := time.monotonic()) < until:
            await asyncio.sleep(min(1.0, until - now))
            for caller in [each for each in self.callers if each.is_stuck(time.monotonic())]:
                caller.abort()
        self.over = True
        ended = time.monotonic()
        # What is under way still gets its answer, so that each event that is safe is also counted.
        for _ in range(round(LAST_SECONDS / PAUSE_SECONDS)):
            if not self._waiting():
                break
            await asyncio.sleep(PAUSE_SECONDS)
        for caller in list(self.callers):
            caller.abort()
        return Samples(began, ended, self._at.tobytes(), self._took.tobytes(), self._status.tobytes())


def start(plan: Plan) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin
    process.stdin.write(msgspec.msgpack.encode(plan))
    process.stdin.close()
    return process


def finish(process: subprocess.Popen[bytes]) -> Samples:
    assert process.stdout
    with process:
        answer = process.stdout.read()
        if code := process.wait():
            raise SystemExit(f"the load generator ended with {code}")
    return msgspec.msgpack.decode(answer, type=Samples)


def run(plan: Plan) -> Samples:
    """Carries out the plan in a process of its own."""
    return finish(start(plan))


def main() -> None:
    plan = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Plan)
    samples = uvloop.run(Crowd(plan).run())
    sys.stdout.buffer.write(msgspec.msgpack.encode(samples))


if __name__ == "__main__":
    main()
