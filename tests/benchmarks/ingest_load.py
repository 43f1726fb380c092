"""The load of the benchmarks: `service.load` in a process of its own, one request over and over.

`python -m tests.benchmarks.ingest_load < plan` reads a `Plan` as msgpack and writes what was seen.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys

import msgspec
import uvloop

from service import load
from service.load import Samples, Target, percentile

__all__ = ["Plan", "Samples", "finish", "percentile", "request_bytes", "run", "start"]

PATIENCE_SECONDS = 20.0


class Plan(msgspec.Struct):
    """What to send: `connections` callers send `request` for `seconds`, each one request at a time.

    With a `rate` requests are due so often a second, over at most so many connections.
    """

    host: str
    port: int
    request: bytes
    connections: int
    seconds: float
    rate: float = 0.0


class _Seen(msgspec.Struct):
    """Samples on their way between two processes."""

    began: float
    ended: float
    at: bytes
    took: bytes
    status: bytes


def request_bytes(path: str, body: bytes, content_type: str = "application/json") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {content_type}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


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
    seen = msgspec.msgpack.decode(answer, type=_Seen)
    samples = Samples(seen.began, seen.ended)
    samples.at.frombytes(seen.at)
    samples.took.frombytes(seen.took)
    samples.status.frombytes(seen.status)
    return samples


def run(plan: Plan) -> Samples:
    """Carries out the plan in a process of its own."""
    return finish(start(plan))


async def carry_out(plan: Plan) -> Samples:
    chosen = load.Plan(plan.connections, plan.seconds, plan.rate, timeout_seconds=PATIENCE_SECONDS)
    return await load.Crowd(Target(plan.host, plan.port), chosen, lambda _: plan.request).run()


def main() -> None:
    plan = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Plan)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(carry_out(plan))
    columns = (found.at.tobytes(), found.took.tobytes(), found.status.tobytes())
    sys.stdout.buffer.write(msgspec.msgpack.encode(_Seen(found.began, found.ended, *columns)))


if __name__ == "__main__":
    main()
