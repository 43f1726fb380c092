"""What may follow the last chunk of a body: counted, bounded, and never a header of the request."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest
from fastapi import FastAPI, Request

from service.connections import MOST_HEADERS
from tests.serving import ARTICLE, listening, pubsub_with_topic, settings_for
from tests.test_connections import answer, one_answer, opened

LIMIT = 4096
CHUNKED = b"Host: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
HEAD = b"POST /events/signin HTTP/1.1\r\n" + CHUNKED
CHUNK = b"%x\r\n%s\r\n" % (len(ARTICLE), ARTICLE)
LAST = b"0\r\n"
HOSTILE = {
    "many lines": b"a:\r\n" * 20_000,
    "a name without end": b"a" * 80_000,
    "a value without end": b"a: " + b"b" * 80_000,
    "an end that comes too late": b"a: " + b"b" * 8_000 + b"\r\n\r\n",
}


def bounded(tmp_path, **values):
    return settings_for(tmp_path, max_header_bytes=LIMIT, **values)


@pytest.mark.parametrize("path", [b"/events/signin", b"/events/signin/batch", b"/jobs"])
@pytest.mark.parametrize("trailers", HOSTILE.values(), ids=HOSTILE.keys())
async def test_trailers_beyond_the_limit_of_a_head_are_a_431_whether_they_end_or_not(
    tmp_path, path, trailers
):
    async with listening(bounded(tmp_path)) as port:
        head = b"POST " + path + b" HTTP/1.1\r\n" + CHUNKED
        reader, writer = await opened(port, head + CHUNK + LAST + trailers)
        assert await answer(reader) == (431, "headers_too_large")
        writer.close()


@pytest.mark.parametrize("trailers", HOSTILE.values(), ids=HOSTILE.keys())
async def test_trailers_that_come_in_small_pieces_are_counted_together(tmp_path, trailers):
    async with listening(bounded(tmp_path)) as port:
        reader, writer = await opened(port, HEAD + CHUNK + LAST)
        refused = asyncio.create_task(answer(reader))
        for start in range(0, len(trailers), 999):
            writer.write(trailers[start : start + 999])
            await writer.drain()
        assert await refused == (431, "headers_too_large")
        writer.close()


async def test_each_request_may_have_trailers_up_to_the_limit_whatever_the_size_of_its_chunks(tmp_path):
    async with (
        pubsub_with_topic(tmp_path, max_header_bytes=LIMIT) as (_, settings, _),
        listening(settings) as port,
    ):
        reader, writer = await opened(port)
        large = b" " * 20_000  # one chunk of many reads, without the end of a line
        for _ in range(3):
            writer.write(HEAD + b"%x\r\n" % len(large) + large[:9_000])
            await writer.drain()
            writer.write(large[9_000:] + b"\r\n" + CHUNK + LAST + b"x-checksum: " + b"c" * 3_000)
            await writer.drain()
            writer.write(b"\r\nx-more: d\r\n\r\n")
            status, headers, _ = await one_answer(reader)
            assert status == 202
            assert "connection" not in headers
        writer.close()


async def test_a_trailer_is_no_header_of_the_request(tmp_path):
    app = FastAPI()
    app.state.settings = settings_for(tmp_path)

    @app.post("/headers")
    async def headers(request: Request) -> list[str]:
        await request.body()
        return request.headers.keys()

    async with listening(app.state.settings, app) as port:
        head = b"POST /headers HTTP/1.1\r\n" + CHUNKED
        reader, writer = await opened(
            port, head + LAST + b"X-API-Key: stolen\r\nExpect: 100-continue\r\n\r\n"
        )
        _, _, names = await one_answer(reader)
        assert names == ["host", "content-type", "transfer-encoding"]
        writer.close()


async def test_chunks_that_are_none_are_a_400(tmp_path):
    async with listening(settings_for(tmp_path)) as port:
        reader, writer = await opened(port, HEAD + CHUNK + b"no size\r\n")
        assert await answer(reader) == (400, "malformed_request")
        writer.close()


async def test_a_caller_without_a_key_is_told_so_whatever_follows_its_head(tmp_path):
    async with listening(bounded(tmp_path, require_authentication=True)) as port:
        reader, writer = await opened(port, HEAD + LAST + HOSTILE["many lines"])
        assert await answer(reader) == (401, "authentication_required")
        writer.close()


@pytest.mark.parametrize("end", [b"", b"\r\n"])
async def test_a_head_of_too_many_headers_is_a_431_whether_it_ends_or_not(tmp_path, end):
    async with listening(settings_for(tmp_path)) as port:
        line = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
        reader, writer = await opened(port, line + b"a:\r\n" * (MOST_HEADERS + 1) + end)
        assert await answer(reader) == (431, "headers_too_large")
        writer.close()
        reader, writer = await opened(port, line + b"a:\r\n" * (MOST_HEADERS - 1) + b"\r\n")
        assert (await one_answer(reader))[0] == 200
        writer.close()


async def test_a_refused_head_is_not_kept_while_its_caller_goes_on_sending(tmp_path):
    async with listening(settings_for(tmp_path)) as port:
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            open_still = []
            for _ in range(20):
                reader, writer = await opened(port, b"GET /healthz HTTP/1.1\r\n" + b"ab: cd\r\n" * 8_000)
                assert (await asyncio.wait_for(reader.readline(), 10)).split()[1] == b"431"
                open_still.append(writer)
            held = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        for writer in open_still:
            writer.close()
        assert held < 10_000_000
