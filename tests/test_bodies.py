"""Bodies: what is unpacked, up to where, and what is given back."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import zlib

import pytest
import zstandard

from service import bodies
from service.errors import (
    BodiesOverloadedError,
    BodyTimeoutError,
    BodyTooLargeError,
    InvalidEncodingError,
    UnsupportedMediaTypeError,
)
from tests.serving import serving, settings_for

CAP = 100_000


def zstd(data, **options):
    return zstandard.ZstdCompressor(**options).compress(data)


PACK = {b"gzip": gzip.compress, b"zstd": zstd}


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, CAP])
def test_what_was_packed_comes_out_up_to_the_cap(encoding, size):
    data = (bytes(range(256)) * 400)[:size]
    assert bodies.unpack(PACK[encoding](data), encoding, CAP) == data


def test_a_zstandard_frame_that_does_not_tell_its_size_comes_out():
    packer = zstandard.ZstdCompressor().compressobj()
    assert bodies.unpack(packer.compress(b"x" * 1000) + packer.flush(), b"zstd", CAP) == b"x" * 1000


@pytest.mark.parametrize("encoding", PACK)
def test_one_byte_more_than_the_cap_is_too_large(encoding):
    with pytest.raises(BodyTooLargeError):
        bodies.unpack(PACK[encoding](b" " * (CAP + 1)), encoding, CAP)


@pytest.mark.parametrize("encoding", PACK)
def test_a_bomb_of_a_gigabyte_takes_a_few_megabytes(encoding):
    if encoding == b"gzip":
        packer = zlib.compressobj(9, wbits=31)
    else:
        packer = zstandard.ZstdCompressor(level=1, write_content_size=False).compressobj()
    zeros = bytes(1_000_000)
    bomb = b"".join(packer.compress(zeros) for _ in range(1000)) + packer.flush()
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLargeError):
            bodies.unpack(bomb, encoding, CAP)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda packed: packed[:-1],
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:4],
        lambda packed: packed + b"x",
        lambda packed: packed + packed,
        lambda packed: b"x" + packed,
        lambda packed: b"{}",
    ],
    ids=["one byte short", "half", "head only", "one byte more", "twice", "shifted", "not packed"],
)
def test_anything_but_one_whole_stream_is_refused(encoding, spoil):
    packed = PACK[encoding](b'{"userid": "1"}' * 100)
    with pytest.raises(InvalidEncodingError):
        bodies.unpack(spoil(packed), encoding, CAP)


def test_a_zstandard_frame_that_wants_a_huge_window_is_refused():
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(InvalidEncodingError):
        bodies.unpack(packer.compress(b"x" * 1000) + packer.flush(), b"zstd", CAP)


@pytest.mark.parametrize(
    ("name", "known"),
    [(b"gzip", b"gzip"), (b"X-GZIP", b"gzip"), (b" zstd", b"zstd"), (b"identity", b""), (b"", b"")],
)
def test_the_names_of_encodings_have_one_spelling(name, known):
    assert bodies.known_encoding(name) == known


@pytest.mark.parametrize("name", [b"br", b"deflate", b"gzip, gzip", b"nonsense"])
def test_other_encodings_are_refused(name):
    with pytest.raises(UnsupportedMediaTypeError):
        bodies.known_encoding(name)


def channel(*pieces):
    """An ASGI channel that gives the pieces, and then nothing for ever."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]

    async def receive():
        if messages:
            return messages.pop(0)
        return await asyncio.Event().wait()

    return receive


def incoming(tmp_path, *pieces, path="/events/signin", **values):
    shared = bodies.Bodies(settings_for(tmp_path, **values))
    headers = {b"transfer-encoding": b"chunked"}
    return shared, shared.incoming({"type": "http", "path": path}, headers, channel(*pieces))


async def test_a_batch_may_have_more_than_a_single_event(tmp_path):
    for path, fits in ((bodies.BATCH_PATH, True), ("/events/signin", False)):
        _, body = incoming(tmp_path, b" " * 70_000, path=path)
        if fits:
            assert len((await body.receive())["body"]) == 70_000
        else:
            with pytest.raises(BodyTooLargeError):
                await body.receive()


async def test_pieces_that_keep_coming_slowly_do_not_move_the_deadline(tmp_path):
    _, body = incoming(tmp_path, b"a", b"b", body_deadline_seconds=0.05)
    with pytest.raises(BodyTimeoutError):
        await body.read()


async def test_the_bytes_of_all_bodies_together_are_bounded_and_given_back(tmp_path):
    piece = b" " * 1500
    shared, first = incoming(tmp_path, piece, max_bodies_bytes=2000)
    await first.receive()
    second = shared.incoming(
        {"type": "http", "path": "/"}, {b"transfer-encoding": b"chunked"}, channel(piece)
    )
    with pytest.raises(BodiesOverloadedError) as caught:
        await second.receive()
    assert caught.value.retry_after_seconds == 1
    second.release()
    first.release()
    assert shared.free_bytes == 2000


async def test_unpacked_bytes_count_as_well(tmp_path):
    shared, body = incoming(tmp_path, max_bodies_bytes=2000)
    with pytest.raises(BodiesOverloadedError):
        body.unpacked(gzip.compress(b" " * 3000), b"gzip")
    body.release()
    assert shared.free_bytes == 2000


@pytest.mark.parametrize(
    "types",
    [
        [],
        ["text/plain"],
        ["application/jsonx"],
        ["application/json"],
        ["Application/JSON; charset=utf-8"],
        ["application/json", "text/plain"],
        ["text/plain", "application/json"],
    ],
)
async def test_a_sign_in_and_a_launch_are_judged_alike_by_their_content_types(tmp_path, types):
    headers = [("Content-Type", each) for each in types]
    async with serving(settings_for(tmp_path)) as client:
        answers = [
            await client.post(path, content=b'{"colour": "red"}', headers=headers)
            for path in ("/events/signin", "/jobs")
        ]
    assert len({answer.status_code for answer in answers}) == 1
    if answers[0].status_code == 415:
        assert len({answer.json()["detail"] for answer in answers}) == 1
