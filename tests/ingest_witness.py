"""A service whose Pub/Sub is away, a witness of its answers, and how it must bear that its database fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.running import DATE, until
from tests.server_process import service
from tests.serving import JSON, NOBODY

ANSWER_SECONDS = 15.0  # the publish deadline, the wait for a connection, one statement
RECOVERY_SECONDS = 20.0
CALLERS = 50
# Caches and the heap's fragments fill during the first thousands of failures; then the memory must stay.
WARM_UP = 3000
REQUESTS = 5000
GROWTH_BYTES = 5 << 20  # 1 KB a request: less than any request takes that something keeps alive
TRIES = 3
PATIENT = httpx.Timeout(ANSWER_SECONDS + 10)


def body(number):
    return b'{"userid": "u", "date": "%s", "event_id": "e-%d"}' % (DATE.encode(), number)


def memory(server):
    """Resident bytes of the service."""
    return sum(
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        for pid in server.pids()
    )


@dataclass
class Answer:
    """What one request got, and how long it took."""

    status: int
    head: bytes
    content: dict
    seconds: float


class Witness:
    """Sends events to a service, and knows which of them were answered with 2xx."""

    def __init__(self, server):
        self._server = server
        self._sent = 0
        self.promised = set()

    def one(self):
        with httpx.Client(base_url=self._server.address, timeout=PATIENT) as client:
            self._sent += 1
            answer = client.post("/events/signin", content=body(self._sent), headers=JSON)
            if answer.is_success:
                self._promise(self._sent, answer.json())
            return answer

    def press(self, count):
        """Sends `count` events over `CALLERS` connections; returns their answers."""
        numbers = iter(range(self._sent + 1, self._sent + count + 1))
        self._sent += count

        async def all_of_them():
            callers = (self._call(numbers) for _ in range(min(CALLERS, count)))
            return [answer for found in await asyncio.gather(*callers) for answer in found]

        return asyncio.run(all_of_them())

    async def _call(self, numbers):
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        found = []
        for number in numbers:
            started = time.monotonic()
            data = body(number)
            writer.write(
                b"POST /events/signin HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(data), data)
            )
            async with asyncio.timeout(ANSWER_SECONDS + 10):
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r", 1)[0])
                content = json.loads(await reader.readexactly(length))
            answer = Answer(int(head.split()[1]), head, content, time.monotonic() - started)
            if answer.status == 202:
                self._promise(number, content)
            found.append(answer)
        writer.close()
        return found

    def _promise(self, number, content):
        assert content["event_id"] == f"e-{number}"
        self.promised.add(content["event_id"])


def assert_refused(server, witness, requests):
    """While the trouble lasts: 503 with Retry-After in bounded time, memory flat, and the process lives."""
    processes = max(1, len(server.pids()) - 1)
    answers = witness.press(min(WARM_UP, requests) * processes)
    growth = GROWTH_BYTES
    for _ in range(TRIES):  # what is kept alive grows each time, a heap that has just taken a page does not
        if growth < GROWTH_BYTES:
            break
        before = memory(server)
        answers += witness.press(requests)
        growth = memory(server) - before
    refused = [answer for answer in answers if answer.status != 202]
    assert len(refused) > requests // 2  # what is left of pages and files may take a few
    assert {answer.status for answer in refused} == {503}, refused[0].content
    assert all(b"\r\nretry-after: " in answer.head for answer in refused)
    assert max(answer.seconds for answer in answers) < ANSWER_SECONDS
    assert growth < GROWTH_BYTES, f"{growth / 1e6:.1f} MB more after {requests} requests"
    assert httpx.get(f"{server.address}/healthz", timeout=5).status_code == 200


def assert_refused_and_then_taken(server, begin, end, *, waiting, keeps=True, requests=REQUESTS):
    """The test itself: `begin` makes the trouble, `end` ends it, `waiting` tells what is in the outbox.

    Where the trouble takes what was there before, `keeps` is False.
    """
    witness = Witness(server)
    assert witness.one().json()["status"] == "spooled"
    if not keeps:
        witness.promised.clear()
    begin()
    try:
        assert_refused(server, witness, requests)
    finally:
        end()
    pids = server.pids()
    until(lambda: witness.one().is_success, RECOVERY_SECONDS)
    assert witness.press(20)
    assert server.pids() == pids  # without a restart
    assert witness.promised
    assert witness.promised <= waiting()


@pytest.fixture(name="workers", params=[1, 2], ids=["1 worker", "2 workers"])
def worker_count(request):
    return request.param


@contextlib.contextmanager
def without_pubsub(directory, database_url="", *, workers=1, **values):
    """A service whose Pub/Sub is away, so that every event has to go into the outbox."""
    values = {"SIGNIN_PUBLISH_DEADLINE_SECONDS": "5", **values}
    with service(directory, NOBODY, database_url=database_url, workers=workers, **values) as server:
        yield server
