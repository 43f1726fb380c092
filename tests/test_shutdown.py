"""The end of the service at the socket: what it still answers, and when it stops to."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import asynccontextmanager

import pytest

from service import server
from service.app import create_app
from tests.serving import ARTICLE, pubsub_with_topic, until

SIGNIN = (
    b"POST /events/signin HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(ARTICLE)
)


class Caller:
    """A connection that is kept."""

    def __init__(self, reader, writer):
        self._reader = reader
        self._writer = writer

    def send(self, content):
        self._writer.write(content)

    async def answer(self):
        """Status, headers and body of the next answer."""
        head = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 10)
        status, *lines = head.decode().lower().splitlines()
        headers = dict(line.split(": ", 1) for line in lines if line)
        self.length = int(headers["content-length"])
        return int(status.split()[1]), headers

    async def body(self):
        return json.loads(await self._reader.readexactly(self.length))

    async def ask(self, path, method="GET"):
        self.send(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return await self.answer()

    async def is_closed(self):
        return await asyncio.wait_for(self._reader.read(), 10) == b""

    def close(self):
        self._writer.close()


@asynccontextmanager
async def served(tmp_path, **values):
    """The service on a socket; yields the server, a way to connect, and the task that ends with it."""
    callers = []
    async with pubsub_with_topic(tmp_path, **values) as (_, settings, _reader):
        started = asyncio.Event()
        with server.listen_on("127.0.0.1", 0) as listener:
            address = listener.getsockname()
            app = create_app(settings)
            ending = server.Server(app, started.set)
            task = asyncio.create_task(ending.serve(sockets=[listener]))

            async def connect():
                callers.append(Caller(*await asyncio.open_connection(*address)))
                return callers[-1]

            try:
                await asyncio.wait_for(started.wait(), 10)
                await until(lambda: app.state.lifetime.warm_after_seconds is not None, 20)
                yield ending, connect, task
            finally:
                for caller in callers:
                    caller.close()
                ending.should_exit = True
                await asyncio.wait_for(task, 20)


async def asked(connect, path):
    caller = await connect()
    status, _ = await caller.ask(path)
    return status, await caller.body()


async def test_after_the_signal_readiness_ends_at_once_and_all_else_goes_on_for_the_delay(
    tmp_path, database_url
):
    async with served(tmp_path, database_url=database_url, shutdown_delay_seconds=600) as (
        ending,
        connect,
        task,
    ):
        assert (await asked(connect, "/readyz"))[1]["status"] == "degraded"  # there is no Dataflow
        kept = await connect()
        status, headers = await kept.ask("/healthz")
        assert (status, await kept.body()) == (200, {"status": "ok"})
        assert "connection" not in headers
        ending.handle_exit(signal.SIGTERM, None)
        status, problem = await asked(connect, "/readyz")
        assert (status, problem["code"], problem["retryable"]) == (503, "shutting_down", True)
        assert (await asked(connect, "/healthz"))[0] == 200
        offering = await connect()
        offering.send(
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        )
        assert (await offering.answer())[0] == 200
        assert (await asked(connect, "/startupz"))[0] == 200  # the start stays over
        newcomer = await connect()
        newcomer.send(SIGNIN + ARTICLE)
        status, headers = await newcomer.answer()
        assert (status, headers["connection"]) == (202, "close")
        assert (await newcomer.body())["status"] == "published"
        assert await newcomer.is_closed()
        status, headers = await kept.ask("/healthz")  # the next one is to be made elsewhere
        assert (status, headers["connection"]) == (200, "close")
        assert not task.done()


async def test_a_request_in_flight_is_finished_and_the_socket_is_closed_after_the_delay(
    tmp_path, database_url
):
    async with served(tmp_path, database_url=database_url, shutdown_delay_seconds=2.0) as (
        ending,
        connect,
        task,
    ):
        in_flight = await connect()
        in_flight.send(SIGNIN + ARTICLE[:10])
        await asked(connect, "/healthz")  # by now the first bytes are there
        ending.handle_exit(signal.SIGTERM, None)
        assert (await asked(connect, "/readyz"))[0] == 503
        assert (await asked(connect, "/healthz"))[0] == 200

        async def refused():
            while True:
                try:
                    (await connect()).close()
                except (ConnectionRefusedError, ConnectionResetError):  # reset: it waited to be taken
                    return
                await asyncio.sleep(0.02)

        await asyncio.wait_for(refused(), 10)
        assert not task.done()
        in_flight.send(ARTICLE[10:])
        assert (await in_flight.answer())[0] == 202
        assert (await in_flight.body())["status"] == "published"
        await asyncio.wait_for(task, 10)


@pytest.mark.parametrize("path", ["/healthz", "/version"])
async def test_head_is_answered_without_a_body(tmp_path, path):
    async with served(tmp_path) as (_, connect, _task):
        caller = await connect()
        status, headers = await caller.ask(path, "HEAD")
        assert (status, int(headers["content-length"]) > 0) == (200, True)
        assert (await caller.ask("/healthz"))[0] == 200  # the next bytes are the next answer's
        assert await caller.body() == {"status": "ok"}


async def test_asked_a_second_time_the_service_waits_for_nobody(tmp_path):
    async with served(tmp_path, shutdown_delay_seconds=600) as (ending, connect, task):
        in_flight = await connect()
        in_flight.send(SIGNIN)
        await asked(connect, "/healthz")
        for _ in range(2):
            ending.handle_exit(signal.SIGTERM, None)
        await asyncio.wait_for(task, 10)
