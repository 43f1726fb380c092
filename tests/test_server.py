"""The HTTP server: what strange or slow callers cannot do to it."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI, Request

from service import connections, server
from service.config import Settings

BODY = b'{"some": "body"}'
UPGRADE = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA\r\n"
)


@asynccontextmanager
async def connected(**values):
    """A connection to a server whose application answers with the body of the request."""
    app = FastAPI()
    app.state.settings = Settings(_env_file=None, **values)

    @app.post("/echo")
    async def echo(request: Request) -> dict[str, str]:
        return {"body": (await request.body()).decode()}

    started = asyncio.Event()
    with server.listen_on("127.0.0.1", 0) as listener:
        running = server.Server(app, started.set)
        task = asyncio.create_task(running.serve(sockets=[listener]))
        await asyncio.wait_for(started.wait(), 10)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        try:
            yield reader, writer
        finally:
            writer.close()
            running.should_exit = True
            await asyncio.wait_for(task, 10)


@pytest.fixture
def sent(monkeypatch):
    """Sends bytes and returns when the server has read them, so that what follows is read apart from them."""
    heard, take = asyncio.Event(), connections.Connection.data_received

    def data_received(connection, data):
        take(connection, data)
        heard.set()

    async def send(writer, data):
        heard.clear()
        writer.write(data)
        await asyncio.wait_for(heard.wait(), 10)

    monkeypatch.setattr(connections.Connection, "data_received", data_received)
    return send


def head(*lines):
    return b"".join(
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n" % len(BODY), *lines, b"\r\n")
    )


async def answered(reader):
    """The status and the body of the next answer."""
    lines = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).lower().split(b"\r\n")
    [length] = [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")]
    return int(lines[0].split()[1]), await reader.readexactly(length)


@pytest.mark.parametrize("parts", [1, 2])
async def test_a_request_that_offers_http2_keeps_its_body_and_its_connection(sent, parts):
    async with connected() as (reader, writer):
        request = head(UPGRADE) + BODY
        for part in [request] if parts == 1 else [request[: -len(BODY) + 3], request[-len(BODY) + 3 :]]:
            await sent(writer, part)
        status, body = await answered(reader)
        assert (status, json.loads(body)) == (200, {"body": BODY.decode()})
        writer.write(head() + BODY)
        assert (await answered(reader))[0] == 200


async def test_a_connection_that_was_offered_http2_has_the_bounds_of_the_others(monkeypatch):
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.05)
    async with connected(header_deadline_seconds=0.1) as (reader, writer):
        writer.write(head(UPGRADE) + BODY)
        assert (await answered(reader))[0] == 200
        writer.write(b"POST /echo HT")
        assert b" 408 " in (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n")[0]


async def test_an_offer_of_a_caller_that_closes_is_answered_and_closed():
    async with connected() as (reader, writer):
        closing = head(UPGRADE.replace(b"Upgrade, HTTP2", b"close, Upgrade, HTTP2")) + BODY
        writer.write(closing + head() + BODY)  # what follows is not read, and cuts nothing off
        assert (await answered(reader))[0] == 200
        assert await asyncio.wait_for(reader.read(), 10) == b""


async def test_a_request_to_connect_elsewhere_is_refused():
    async with connected() as (reader, writer):
        writer.write(b"CONNECT other.example:80 HTTP/1.1\r\nHost: h\r\n\r\n")
        status, problem = await answered(reader)
        assert (status, json.loads(problem)["code"]) == (400, "malformed_request")


async def test_a_head_without_end_is_refused(sent):
    async with connected(max_header_bytes=5000) as (reader, writer):
        writer.write(b"POST /echo HTTP/1.1\r\nHost: h\r\nX-Endless: ")
        for _ in range(10):
            await sent(writer, b"a" * 1000)
        status, problem = await answered(reader)
        assert (status, json.loads(problem)["code"]) == (431, "headers_too_large")


async def test_many_requests_on_one_connection_may_be_longer_together(sent):
    async with connected(max_header_bytes=1024) as (reader, writer):
        for _ in range(30):
            for part in (head()[:40], head()[40:] + BODY):
                await sent(writer, part)
            assert (await answered(reader))[0] == 200


@pytest.mark.parametrize("sent", [b"", b"POST /echo HT"])
async def test_a_head_that_does_not_arrive_is_given_up(monkeypatch, sent):
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.05)
    async with connected(header_deadline_seconds=0.1) as (reader, writer):
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), 5)
        assert (b" 408 " in answer.partition(b"\r\n")[0]) == bool(sent)


async def test_a_request_that_takes_longer_than_its_head_may_is_not_given_up(monkeypatch):
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.05)
    async with connected(header_deadline_seconds=0.1) as (reader, writer):
        writer.write(head())
        await asyncio.sleep(0.3)  # three times what a head may take, and several sweeps: nothing happens
        writer.write(BODY)
        assert (await answered(reader))[0] == 200
