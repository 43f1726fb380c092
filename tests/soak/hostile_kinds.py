"""The kinds of hostile bodies, each with the statuses that may answer it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import zstandard

SINGLE, BATCH = "/events/signin", "/events/signin/batch"
GOOD = b'{"userid": "1", "date": "2017-10-17T20:57:17Z"}'
MEGABYTE = 1_000_000
_DEEP_LINE = b"[" * 30_000 + b"\n"


@dataclass
class Kind:
    """One kind of hostile body: where it goes, as what, and the statuses that may answer it."""

    name: str
    path: str
    body: bytes
    statuses: set[int]
    content_type: str = "application/json"
    encoding: str = ""


def bombs() -> tuple[bytes, bytes]:
    """One gigabyte of zeros as gzip (1 MB) and as Zstandard (some 30 KB)."""
    zeros = bytes(MEGABYTE)
    gzip = zlib.compressobj(9, wbits=31)
    zstd = zstandard.ZstdCompressor(level=1, write_content_size=False).compressobj()
    packed = [b"".join([packer.compress(zeros) for _ in range(1000)]) for packer in (gzip, zstd)]
    return packed[0] + gzip.flush(), packed[1] + zstd.flush()


def kinds() -> list[Kind]:
    gzip_bomb, zstd_bomb = bombs()
    deep = b"[" * 60_000
    ndjson = "application/x-ndjson"
    return [
        Kind("not JSON", BATCH, b"x" * 4_900_000, {400}),
        Kind("not UTF-8", BATCH, b'["' + b"\xff" * 4_900_000 + b'"]', {400}),
        Kind("millions of empty arrays", BATCH, b"[" + b"[]," * 1_600_000, {413}),
        Kind("millions of small objects", BATCH, b"[" + b'{"a":1},' * 600_000, {413}),
        Kind("millions of strings", BATCH, b"[" + b'"",' * 1_600_000 + b"1]", {413}),
        Kind("one huge string", BATCH, b'["' + b"," * 4_900_000 + b'"]', {422}),
        Kind("one huge userid", BATCH, b'[{"userid":"' + b"u" * 4_900_000 + b'","date":""}]', {422}),
        Kind("one huge number", BATCH, b"[" + b"1" * 4_900_000 + b"]", {400, 422}),
        Kind("deep", SINGLE, deep, {400}),
        Kind("deep in a batch", BATCH, b"[" + deep, {400}),
        Kind("deep lines", BATCH, _DEEP_LINE * 160, {413, 422}, ndjson),
        Kind("deeper than allowed", BATCH, b"[" * 4_900_000, {413}),
        Kind("too many lines", BATCH, b"\n" * 4_900_000 + b"1", {413}, ndjson),
        Kind("quotes that never close", BATCH, (b'"' * 4_000 + b"\n") * 1000, {422}, ndjson),
        Kind("lone surrogates", BATCH, b"[" + b'"' + b"\\ud800" * 800_000 + b'"]', {400, 422}),
        Kind("lone surrogate", SINGLE, GOOD.replace(b'"1"', b'"\\udc00"'), {400, 422}),
        Kind("repeated keys", SINGLE, b"{" + b'"userid":"1",' * 4_000 + b'"date":"1"}', {422}),
        Kind("repeated keys in a batch", BATCH, b"[{" + b'"userid":"1",' * 60_000 + b'"date":"1"}]', {422}),
        Kind("NaN as a date", SINGLE, b'{"userid": "1", "date": NaN}', {400}),
        Kind("NaN as dates", BATCH, b'[{"userid": "1", "date": NaN}]', {400}),
        Kind("NaN as text", SINGLE, b'{"userid": "1", "date": "NaN"}', {422}),
        Kind("unknown encoding", BATCH, b"x" * 100_000, {415}, encoding="br"),
        Kind("not gzip", BATCH, b"x" * 100_000, {400}, encoding="gzip"),
        Kind("not zstd", BATCH, b"x" * 100_000, {400}, encoding="zstd"),
        Kind("gzip bomb", BATCH, gzip_bomb, {413}, encoding="gzip"),
        Kind("gzip bomb for one event", SINGLE, gzip_bomb[:60_000], {413}, encoding="gzip"),
        Kind("zstd bomb", BATCH, zstd_bomb, {413}, encoding="zstd"),
        Kind("zstd bomb for one event", SINGLE, zstd_bomb[:60_000], {413}, encoding="zstd"),
        Kind("too large", BATCH, b" " * 20_000_000, {413}),
        Kind("too large for one event", SINGLE, b" " * 2_000_000, {413}),
    ]
