"""The bounds of connections, on a real server: heads, time, and how many there are."""

from __future__ import annotations

import asyncio
import json
import time

import httpx

from service import connections
from tests.serving import ARTICLE, JSON, listening, pubsub_with_topic, settings_for

HEAD = b"POST /events/signin HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def opened(port, data=b""):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    return reader, writer


async def answer(reader, seconds=10.0):
    """The status and the problem's code; None where the connection ended without an answer."""
    line = await asyncio.wait_for(reader.readline(), seconds)
    if not line:
        return None
    rest = await asyncio.wait_for(reader.read(), seconds)
    head, _, body = rest.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return int(line.split()[1]), json.loads(body)["code"]


async def test_a_head_beyond_the_limit_is_a_431_whether_it_ends_or_not(tmp_path):
    async with listening(settings_for(tmp_path, max_header_bytes=4096)) as port:
        for data in (
            b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 5000 + b"\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 500_000,
            b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\n" + b"X: a\r\n" * 1000 + b"\r\n",
        ):
            reader, writer = await opened(port, data)
            assert await answer(reader) == (431, "headers_too_large")
            writer.close()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            response = await client.get("/healthz", headers={"X": "a" * 3000})
            assert response.status_code == 200


async def test_what_is_not_http_is_a_400(tmp_path):
    async with listening(settings_for(tmp_path)) as port:
        reader, writer = await opened(port, b"\x16\x03\x01 nonsense\r\n\r\n")
        assert await answer(reader) == (400, "malformed_request")
        writer.close()


async def test_an_answer_that_is_cut_off_by_what_follows_its_request_is_no_failure_in_the_log(
    tmp_path, caplog
):
    async with listening(settings_for(tmp_path)) as port:
        reader, writer = await opened(port, HEALTH + b"\x16\x03\x01 nonsense\r\n\r\n")
        assert await answer(reader) is None
        writer.close()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_head_that_does_not_end_is_given_up_and_a_silent_connection_closed(tmp_path):
    async with listening(settings_for(tmp_path, header_deadline_seconds=0.2)) as port:
        slow, slow_writer = await opened(port, HEAD)
        silent, silent_writer = await opened(port)
        assert await answer(slow) == (408, "request_timeout")
        assert await answer(silent) is None
        slow_writer.close()
        silent_writer.close()


async def test_the_connection_that_waited_longest_makes_room_for_a_new_one(tmp_path):
    async with listening(settings_for(tmp_path, max_connections=3)) as port:
        idle = [await opened(port) for _ in range(3)]
        reader, writer = await opened(port, HEALTH)
        assert (await asyncio.wait_for(reader.readline(), 10)).split()[1] == b"200"
        assert await answer(idle[0][0]) is None
        for _, other in [*idle, (reader, writer)]:
            other.close()


async def test_a_new_connection_is_told_when_all_others_are_busy(tmp_path):
    async with listening(settings_for(tmp_path, max_connections=2)) as port:
        busy = [await opened(port, HEAD + b"Content-Length: 100\r\n\r\n{") for _ in range(2)]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            response = await client.get("/healthz")
        assert (response.status_code, response.json()["code"]) == (503, "too_many_connections")
        assert response.headers["retry-after"] == "1"
        for _, writer in busy:
            writer.close()


async def test_a_413_reaches_a_caller_that_goes_on_sending_and_the_connection_ends(tmp_path):
    async with listening(settings_for(tmp_path)) as port:
        reader, writer = await opened(port, HEAD + b"Content-Length: 10000000\r\n\r\n" + b" " * 10_000_000)
        assert await answer(reader) == (413, "body_too_large")
        writer.close()


async def test_a_stalled_body_is_a_408_and_the_connection_ends(tmp_path):
    async with listening(settings_for(tmp_path, body_deadline_seconds=0.2)) as port:
        reader, writer = await opened(port, HEAD + b"Content-Length: 100\r\n\r\n{")
        started = time.monotonic()
        assert await answer(reader) == (408, "body_timeout")
        assert time.monotonic() - started < 5
        writer.close()


async def test_a_connection_takes_one_request_after_the_other_and_pipelined_ones(tmp_path):
    async with (
        pubsub_with_topic(tmp_path) as (_, settings, _reader),
        listening(settings) as port,
    ):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for _ in range(3):
                response = await client.post("/events/signin", content=ARTICLE, headers=JSON)
                assert response.status_code == 202
                assert "connection" not in response.headers
        reader, writer = await opened(port, HEALTH * 3)
        found = 0
        while found < 3:
            found += (await asyncio.wait_for(reader.readline(), 10)).count(b"HTTP/1.1 200")
        writer.close()


async def test_of_requests_that_are_sent_far_ahead_the_first_are_answered_and_the_last_of_these_says_so(
    tmp_path,
):
    async with listening(settings_for(tmp_path)) as port:
        reader, writer = await opened(port, HEALTH * 20_000)
        *kept, last = (await asyncio.wait_for(reader.read(), 10)).lower().split(b"http/1.1 200")[1:]
        assert len(kept) == connections.MOST_AHEAD
        assert b"connection: close" in last
        assert not any(b"connection: close" in each for each in kept)
        writer.close()


def post(body, *lines):
    head = [*HEAD.rstrip().split(b"\r\n"), b"Content-Length: %d" % len(body), *lines]
    return b"\r\n".join([*head, b"", body])


async def one_answer(reader):
    """Status, headers and decoded body of one answer on a connection that stays open."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    line, *fields = head.decode().strip().split("\r\n")
    headers = dict(field.lower().split(": ", 1) for field in fields)
    body = await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), 10)
    return int(line.split()[1]), headers, json.loads(body)


async def test_sign_ins_sent_one_after_the_other_without_waiting_are_answered_in_their_order(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, _), listening(settings) as port:
        bodies = [
            b'{"userid": "%d", "date": "2017-10-17T20:57:17Z", "event_id": "%d"}' % (n, n) for n in range(9)
        ]
        reader, writer = await opened(port, b"".join(map(post, bodies)))
        for number in range(9):
            status, headers, answered = await one_answer(reader)
            assert (status, answered["event_id"]) == (202, str(number))
            assert {"date", "x-request-id", "content-type"} <= headers.keys()
        writer.close()


async def test_a_sign_in_gets_the_same_answer_whole_in_pieces_and_with_the_end_of_its_connection(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, _), listening(settings) as port:
        whole = post(ARTICLE, b"X-Request-ID: mine")
        reader, writer = await opened(port, whole)
        first = await one_answer(reader)
        writer.write(whole[:-20])
        await writer.drain()
        writer.write(whole[-20:])
        second = await one_answer(reader)
        writer.write(post(ARTICLE, b"X-Request-ID: mine", b"Connection: close"))
        third = await one_answer(reader)
        assert await asyncio.wait_for(reader.read(), 10) == b""  # the server has closed
        writer.close()
        assert third[1].pop("connection") == "close"
        for status, headers, body in (first, second, third):
            assert (status, headers["x-request-id"], body["status"]) == (202, "mine", "published")
            assert headers.keys() == first[1].keys()


async def test_a_sign_in_that_is_none_gets_its_problem_on_a_connection_that_goes_on(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, _), listening(settings) as port:
        reader, writer = await opened(port, post(b"{}"))
        status, headers, problem = await one_answer(reader)
        assert (status, headers["content-type"]) == (422, "application/problem+json")
        assert problem["code"] == "userid_missing"
        writer.write(post(b" " * (settings.max_body_bytes + 1)))
        status, headers, problem = await one_answer(reader)
        assert (status, problem["code"]) == (413, "body_too_large")
        writer.close()


async def test_a_body_that_waits_for_100_continue_is_asked_for(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, _), listening(settings) as port:
        head, body = post(ARTICLE, b"Expect: 100-continue").split(b"\r\n\r\n")
        reader, writer = await opened(port, head + b"\r\n\r\n")
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).startswith(b"HTTP/1.1 100 ")
        writer.write(body)
        status, _, _ = await one_answer(reader)
        assert status == 202
        writer.close()
