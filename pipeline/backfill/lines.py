"""The lines of a file, each as the message that it would have been; what cannot be read, as a dead letter.

Files are NDJSON, plain or gzip, local or `gs://`. Whether one is gzip is told by its first bytes: names
lie, and Beam asks Cloud Storage for what is stored, never to unpack it.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from pipeline.pubsub_source import new_message
from transforms.bigquery_rows import MAX_DEAD_LETTER_PAYLOAD_BYTES, well_formed

FILE_ATTRIBUTE = "file"
LINE_ATTRIBUTE = "line"
# What Pub/Sub would take of one message.
MAX_LINE_BYTES = 10_000_000
SEGMENT_BYTES = 64_000_000
_CHUNK_BYTES = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"


class Segment(NamedTuple):
    """A part of a file that begins with the line `line` at byte `start` and ends before byte `stop`.

    `stop` is None for all that is left. Only files that are not compressed have more than one.
    """

    path: str
    start: int = 0
    stop: int | None = None
    line: int = 1


class Unreadable(NamedTuple):
    """What of a file gave no message: a stable reason, a sentence, and the bytes that are kept of it."""

    path: str
    line: int
    reason: str
    detail: str
    payload: bytes

    def attributes(self) -> dict[str, str]:
        """Where it lies, as a dead letter tells it."""
        return _place(self.path, self.line)


def find_files(pattern: str) -> list[tuple[str, int]]:
    """The paths and sizes in bytes of the files that a glob pattern names, in the order of their names."""
    (found,) = FileSystems.match([pattern])
    return sorted((file.path, file.size_in_bytes) for file in found.metadata_list)


def segments(path: str, size: int, segment_bytes: int = SEGMENT_BYTES) -> Iterator[Segment]:
    """Divides a file between lines, so that several workers can read it and each knows its line numbers.

    A large file is read once for that, in which only line ends are counted; `size` is in bytes.
    """
    with _open(path) as file:
        if size <= segment_bytes or file.read(2) == _GZIP_MAGIC:
            yield Segment(path)
            return
        start, first_line, lines = 0, 1, 1
        position = file.seek(0)
        while chunk := file.read(_CHUNK_BYTES):
            searched = 0
            while (cut := _line_end(chunk, max(start + segment_bytes - position, searched))) is not None:
                lines += chunk.count(b"\n", searched, cut)
                yield Segment(path, start, position + cut, first_line)
                start, first_line, searched = position + cut, lines, cut
            lines += chunk.count(b"\n", searched)
            position += len(chunk)
        if start < position:
            yield Segment(path, start, None, first_line)


def read(segment: Segment) -> Iterator[Any]:
    """The lines as raw protobuf `PubsubMessage`s, without their line ends; `Unreadable` for the others.

    What a line is worth is for the contract to say: an empty one is a message too. Raises OSError for a
    file that is not there.
    """
    path, number, unfinished = segment.path, segment.line, _UnfinishedLine()
    with _open(path) as file:
        try:
            for chunk in _chunks(file, segment):
                first, *others = chunk.split(b"\n")
                unfinished.add(first)
                for rest in others:
                    yield unfinished.take(path, number)
                    number += 1
                    unfinished.add(rest)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            detail = f"from this line on the gzip data cannot be read: {error}"
            kept = bytes(unfinished.data[:MAX_DEAD_LETTER_PAYLOAD_BYTES])
            yield Unreadable(path, number, "file_corrupt", detail, kept)
            return
    if unfinished.size:
        yield unfinished.take(path, number)


class _UnfinishedLine:
    """The bytes of a line so far; of one that is too long only the first ones, its size and its digest."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.size = 0
        self._digest: Any = None

    def add(self, part: bytes) -> None:
        self.size += len(part)
        if self._digest:
            self._digest.update(part)
            return
        self.data += part
        if self.size > MAX_LINE_BYTES:
            self._digest = hashlib.sha256(self.data)
            del self.data[MAX_DEAD_LETTER_PAYLOAD_BYTES:]

    def take(self, path: str, number: int) -> Any:
        """The whole line as a message, or as `Unreadable`; begins the next one."""
        data, size, digest = bytes(self.data), self.size, self._digest
        self.data, self.size, self._digest = bytearray(), 0, None
        if digest is None:
            return message(path, number, data)
        detail = (
            f"a line may have {MAX_LINE_BYTES} bytes "
            f"(the first {len(data)} of {size} bytes, SHA-256 {digest.hexdigest()})"
        )
        return Unreadable(path, number, "line_too_long", detail, data)


def message(path: str, number: int, line: bytes) -> Any:
    """A line as a message. Its `event_id` attribute, which counts where the line itself has none, is made
    of the file, the line's number and its bytes: a file that is read twice gives the same ids.
    """
    digest = hashlib.sha256(f"{path}\0{number}\0".encode("utf-8", "surrogateescape") + line)
    return new_message(line, {**_place(path, number), "event_id": f"line-{digest.hexdigest()[:32]}"})


def _chunks(file: Any, segment: Segment) -> Iterator[bytes]:
    """The bytes of the segment, unpacked, in pieces of at most a megabyte."""
    file.seek(segment.start)
    if not segment.start and file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC:
        file.seek(0)
        unpacked = gzip.GzipFile(fileobj=file)
        # One step of unpacking at a time: what is good before a damaged place is not lost with it.
        while chunk := unpacked.read1(_CHUNK_BYTES):
            yield chunk
        return
    file.seek(segment.start)
    position = segment.start
    while segment.stop is None or position < segment.stop:
        chunk = file.read(
            _CHUNK_BYTES if segment.stop is None else min(_CHUNK_BYTES, segment.stop - position)
        )
        if not chunk:
            return
        position += len(chunk)
        yield chunk


def _place(path: str, number: int) -> dict[str, str]:
    return {FILE_ATTRIBUTE: well_formed(path), LINE_ATTRIBUTE: str(number)}


def _line_end(chunk: bytes, position: int) -> int | None:
    """The offset behind the first line end at or behind `position`; None where the chunk has none there."""
    found = chunk.find(b"\n", max(position - 1, 0))
    return None if found < 0 else found + 1


def _open(path: str) -> BinaryIO:
    """The bytes as they are stored; FileSystems would unpack by the name."""
    file: BinaryIO = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return file
