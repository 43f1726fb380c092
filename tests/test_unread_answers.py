"""Callers that do not read their answers, on a real server: they lose their connection, slow ones do not."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.responses import Response, StreamingResponse

from service import connections
from service.app import create_app
from tests.sample_metrics import scraped
from tests.serving import listening, settings_for

SIZE = 12_000_000  # more than the kernel keeps for a caller
PIECE = b"x" * 100_000


class Answers:
    """What the service of these tests answers besides: `/whole` in one piece, `/stream` without an end."""

    def __init__(self):
        self.ended = asyncio.Event()

    async def whole(self, _request):
        return Response(b"x" * SIZE)

    async def stream(self, _request):
        return StreamingResponse(self._pieces())

    async def _pieces(self):
        try:
            while True:
                yield PIECE
                await asyncio.sleep(0)  # as one that has to wait for what it tells
        finally:
            self.ended.set()


@asynccontextmanager
async def serving_large_answers(tmp_path, **values):
    """Yields the port of a service with large answers, and what they are made of."""
    app, answers = create_app(settings := settings_for(tmp_path, **values)), Answers()
    for path in ("whole", "stream"):
        app.router.add_route(f"/{path}", getattr(answers, path))
    async with listening(settings, app) as port:
        yield port, answers


def asking(port, path, *lines):
    """A connection that has asked for `path` and reads nothing by itself."""
    caller = socket.socket()
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    caller.connect(("127.0.0.1", port))
    caller.setblocking(False)
    caller.sendall("\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode())
    return caller


async def read_to_the_end(caller, pause_seconds=0.0):
    """How many bytes come until the connection ends, read slowly or at once."""
    size = 0
    loop = asyncio.get_running_loop()
    try:
        while data := await asyncio.wait_for(loop.sock_recv(caller, 65_536), 10):
            size += len(data)
            await asyncio.sleep(pause_seconds)
    except ConnectionResetError:
        pass
    return size


async def connections_of(client):
    return (await scraped(client))["signin_connections",]


@pytest.fixture
def _impatient(monkeypatch):
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.3)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("lines", [(), ("Connection: close",)])
async def test_callers_that_do_not_read_their_answers_make_room_for_others(tmp_path, lines):
    async with serving_large_answers(tmp_path, max_connections=3) as (port, _):
        stuck = [asking(port, "/whole", *lines) for _ in range(3)]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            deadline = asyncio.get_running_loop().time() + 10
            while (await client.get("/healthz")).status_code != 200 or await connections_of(client) != 1:
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.05)
        for caller in stuck:
            assert await read_to_the_end(caller) < SIZE
            caller.close()


@pytest.mark.usefixtures("_impatient")
async def test_a_stream_that_nobody_reads_is_ended(tmp_path):
    async with serving_large_answers(tmp_path) as (port, answers):
        caller = asking(port, "/stream")
        await asyncio.wait_for(answers.ended.wait(), 10)
        caller.close()


async def test_a_caller_that_reads_slowly_gets_all_of_a_large_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 1.5)
    async with serving_large_answers(tmp_path) as (port, _):
        caller = asking(port, "/whole", "Connection: close")
        started = asyncio.get_running_loop().time()
        assert await read_to_the_end(caller, 0.02) > SIZE
        assert asyncio.get_running_loop().time() - started > 2.0  # longer than nothing may be taken
        caller.close()


async def test_a_stream_that_is_read_slowly_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 1.5)
    async with serving_large_answers(tmp_path) as (port, answers):
        caller = asking(port, "/stream")
        reading = asyncio.create_task(read_to_the_end(caller, 0.02))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(answers.ended.wait(), 3.0)
        reading.cancel()
        await asyncio.wait([reading])
        caller.close()
