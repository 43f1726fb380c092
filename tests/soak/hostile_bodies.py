"""Throws hostile requests at the service and measures whether its memory stays and whether it answers.

`python -m tests.soak.hostile_bodies [--megabytes 1000] [--idle 100000] [--database KIND] [--workers N]`. Half
of the bytes are bodies of every hostile kind, the rest is what is sent beyond a limit. In the end the
resident memory of the service, its workers included, must lie within 100 MB of its start, and a good
sign-in must have been answered after each kind.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.postgres import database_of
from tests.pubsub_topic import make_topic
from tests.server_process import Server, local_pubsub, service
from tests.soak.hostile_kinds import BATCH, GOOD, MEGABYTE, SINGLE, Kind, kinds

GROWTH_MEGABYTES = 100
CALLERS = 16
DEADLINE_SECONDS = 3  # of heads and bodies, so that the test need not wait long


@dataclass
class Report:
    """What was sent, answered and measured; memory in MB."""

    start: float
    most: float = 0.0
    end: float = 0.0
    sent: int = 0
    answers: dict[str, Counter[int | str]] = field(default_factory=dict)
    good_seconds: list[float] = field(default_factory=list)
    idle_opened: int = 0
    wrong: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        found = list(self.wrong)
        if self.end - self.start > GROWTH_MEGABYTES:
            found.append(f"memory grew from {self.start:.0f} to {self.end:.0f} MB")
        return found

    def summary(self) -> str:
        lines = [f"{name}: {dict(answers)}" for name, answers in self.answers.items()]
        lines.append(
            f"{self.sent / MEGABYTE:,.0f} MB sent, {self.idle_opened:,} idle connections tried, memory "
            f"{self.start:.0f} MB at the start, {self.most:.0f} at most, {self.end:.0f} at the end; "
            f"good sign-ins answered in {max(self.good_seconds):.2f} s at most"
        )
        return "\n".join(lines)


def resident_megabytes(server: Server) -> float:
    """The resident memory of the service, its children included."""
    total = 0
    for pid in server.pids():
        status = Path(f"/proc/{pid}/status").read_text()
        total += next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return total / 1024


class Attack:
    """The attacks on one running service, and the report on them."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._client = httpx.AsyncClient(
            base_url=server.address, timeout=60, limits=httpx.Limits(max_connections=CALLERS)
        )
        self.report = Report(start=resident_megabytes(server))

    async def close(self) -> None:
        await self._client.aclose()

    async def good(self) -> None:
        """One good sign-in, over a connection of its own, must be taken."""
        started = time.monotonic()
        async with httpx.AsyncClient(base_url=self._server.address, timeout=30) as client:
            response = await client.post(SINGLE, content=GOOD, headers={"Content-Type": "application/json"})
        self.report.good_seconds.append(time.monotonic() - started)
        if response.status_code != 202:
            self.report.wrong.append(f"a good sign-in was answered {response.status_code}: {response.text}")
        self.measure()

    def measure(self) -> None:
        self.report.end = resident_megabytes(self._server)
        self.report.most = max(self.report.most, self.report.end)

    async def bodies(self, kind: Kind, count: int) -> None:
        """Sends the body `count` times, `CALLERS` at once."""
        answers = self.report.answers.setdefault(kind.name, Counter())
        headers = {"Content-Type": kind.content_type}
        if kind.encoding:
            headers["Content-Encoding"] = kind.encoding
        left = itertools.repeat(None, count)

        async def call() -> None:
            for _ in left:
                try:
                    response = await self._client.post(kind.path, content=kind.body, headers=headers)
                except httpx.TransportError as error:
                    answers[type(error).__name__] += 1
                    continue
                answers[response.status_code] += 1
                if response.status_code not in kind.statuses | {503}:
                    wrong = f"{kind.name}: {response.status_code} instead of {kind.statuses}"
                    self.report.wrong.append(f"{wrong}: {response.text[:200]}")

        await asyncio.gather(*(call() for _ in range(min(CALLERS, count))))
        self.report.sent += len(kind.body) * count
        await self.good()

    async def endless(self, count: int) -> None:
        """Chunked bodies without an end: each is cut off soon after the limit."""
        answers = self.report.answers.setdefault("endless", Counter())

        async def chunks() -> AsyncIterator[bytes]:
            while True:
                self.report.sent += 64_000
                yield b" " * 64_000

        for _ in range(count):
            try:
                response = await self._client.post(
                    SINGLE, content=chunks(), headers={"Content-Type": "application/json"}
                )
                answers[response.status_code] += 1
            except httpx.TransportError as error:
                answers[type(error).__name__] += 1
        await self.good()

    async def raw(self, name: str, head: bytes, count: int, patience: float = DEADLINE_SECONDS + 5) -> None:
        """Opens `count` connections that send `head` and then say nothing; good calls pass meanwhile.

        What became of each is counted after `patience` (seconds).
        """
        answers = self.report.answers.setdefault(name, Counter())
        writers: list[asyncio.StreamWriter] = []
        readers: list[asyncio.StreamReader] = []
        for number in range(count):
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
            except OSError as error:
                answers[type(error).__name__] += 1
                continue
            writer.write(head)
            readers.append(reader)
            writers.append(writer)
            self.report.sent += len(head)
            if number % 500 == 499:
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
                await self.good()
        await self.good()
        for word in await asyncio.gather(*(first_word(reader, patience) for reader in readers)):
            answers[word] += 1
        for writer in writers:
            writer.transport.abort()
        await self.good()


async def first_word(reader: asyncio.StreamReader, patience: float) -> int | str:
    """The status of the answer, or how the connection ended; `open` where neither came in time."""
    try:
        line = await asyncio.wait_for(reader.readline(), patience)
    except TimeoutError:
        return "open"
    except OSError as error:
        return type(error).__name__
    return int(line.split()[1]) if line else "closed"


def stalled(path: str, announced: int, sent: int) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {announced}\r\n"
    return f"{head}Content-Type: application/json\r\n\r\n".encode() + b" " * sent


async def attack(server: Server, megabytes: int, idle: int, say: Callable[[str], None] = print) -> Report:
    """Sends some `megabytes` of hostile bodies, and tries `idle` idle connections."""
    found = Attack(server)
    for _ in range(3):
        await found.good()  # Google's libraries are loaded by now
    found.report.start = resident_megabytes(server)
    all_kinds = kinds()
    share = megabytes * MEGABYTE / len(all_kinds)
    try:
        for kind in all_kinds:
            count = max(1, min(int(share / len(kind.body)), 2 * megabytes))
            await found.bodies(kind, count)
            say(f"{kind.name}: {found.report.end:.0f} MB")
        await found.endless(5)
        slow = min(1000, max(50, idle // 50))
        await found.raw("stalled bodies", stalled(SINGLE, 60_000, 50_000), slow)
        await found.raw("stalled batches", stalled(BATCH, 5_000_000, 60_000), slow)
        await found.raw("half a head", b"POST /events/signin HTTP/1.1\r\nHost: localhost\r\nX-A: ", slow)
        await found.raw("huge head", b"GET /healthz HTTP/1.1\r\nX-A: " + b"a" * 200_000, 50)
        chunked = b"POST /events/signin HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        trailers = b"Content-Type: application/json\r\n\r\n0\r\n" + b"a:\r\n" * 50_000
        await found.raw("huge trailers", chunked + trailers, slow)
        await found.raw("not HTTP", b"\x16\x03\x01" * 1000, 50)
        for start in range(0, idle, 5000):
            count = min(5000, idle - start)
            await found.raw("idle", b"", count, patience=1)
            found.report.idle_opened += count
        say(found.report.summary())
    finally:
        await found.close()
    return found.report


async def run(
    megabytes: int,
    idle: int,
    say: Callable[[str], None] = print,
    *,
    workers: int = 1,
    database_url: str = "",
    **values: str,
) -> Report:
    """The attack on a fresh service with a fresh Pub/Sub."""
    with tempfile.TemporaryDirectory(prefix="signin-hostile-") as name:
        directory = Path(name)
        with local_pubsub(directory) as pubsub:
            make_topic(pubsub.address)
            deadlines = {
                "SIGNIN_BODY_DEADLINE_SECONDS": str(DEADLINE_SECONDS),
                "SIGNIN_HEADER_DEADLINE_SECONDS": str(DEADLINE_SECONDS),
            }
            with service(
                directory,
                pubsub.address,
                workers=workers,
                database_url=database_url,
                **(deadlines | values),
            ) as server:
                return await attack(server, megabytes, idle, say)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--idle", type=int, default=100_000)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--workers", type=int, default=1, help="processes of the service")
    arguments = parser.parse_args()
    with database_of(arguments.database) as url:
        report = asyncio.run(
            run(arguments.megabytes, arguments.idle, workers=arguments.workers, database_url=url)
        )
    if found := report.problems():
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
