"""The broker's memory on disk: an append-only file of records, replayed at start.

A record is in the file (in the operating system's page cache) before the caller is answered. That
survives the end of this process in any manner; it is not synced to the disk, so a power failure can
lose the last seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
import msgspec

from service.local.grpc_server import StatusError
from service.local.pubsub_records import Record, State

_log = logging.getLogger(__name__)

_MAGIC = b"signin pubsub journal 1\n"
_FRAME = struct.Struct("<II")  # length and CRC-32 of the record that follows
_COMPACT_ABOVE_BYTES = 64 << 20
_COMPACT_FACTOR = 4  # compact when three quarters are dead: each byte is rewritten a third time at most


class JournalError(OSError):
    """The data directory cannot be used: it is in use, damaged, or of another format."""


class Journal:
    """The journal in `directory`, which one process at a time may use. Raises JournalError.

    `state` is what the file said at start, until `follow` is called.
    """

    def __init__(self, directory: Path, *, compact_above_bytes: int = _COMPACT_ABOVE_BYTES) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "pubsub.journal"
        self._lock = _lock(directory / "pubsub.lock")
        self._minimum = compact_above_bytes
        self._snapshot: Callable[[], State] | None = None
        self._file = -1
        try:
            self.state: State | None
            self.state, end = _replay(self._path)
            self._keep_cut_off(end)
            self._rewrite(self.state)
        except BaseException:
            os.close(self._lock)
            raise

    def follow(self, snapshot: Callable[[], State]) -> None:
        """Lets a file that is mostly dead be written anew from `snapshot`.

        It is called before a record is appended, and must give the state of all records before it.
        """
        self._snapshot = snapshot
        self.state = None

    def append(self, records: Sequence[Record]) -> None:
        """Writes all of the records or none. Raises RESOURCE_EXHAUSTED where the disk does not take them."""
        if self.size > self._limit and self._snapshot:
            self._compact(self._snapshot())
        data = b"".join(map(_framed, records))
        try:
            _write(self._file, data)
        except OSError as error:
            os.ftruncate(self._file, self.size)
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"The journal {self._path} cannot be written: {error}"
            ) from error
        self.size += len(data)

    def _keep_cut_off(self, end: int) -> None:
        """Copies a file in which something follows the last whole record: the new file will be without it.

        The end of a write that was interrupted is nothing to miss, but a length that is damaged looks the
        same, and whole records may follow it.
        """
        lost = self._path.stat().st_size - end if end else 0
        if lost:
            copy = self._path.with_suffix(".cut-off")
            shutil.copyfile(self._path, copy)
            _log.warning(
                "%s: %d bytes from byte %d on are left out; %s has them", self._path, lost, end, copy
            )

    def _compact(self, state: State) -> None:
        """Writes the file anew; where the disk does not take it, later again, and the old one grows on."""
        try:
            self._rewrite(state)
        except OSError as error:
            self._limit = self.size + self._minimum
            _log.warning("%s cannot be compacted now: %s", self._path, error)

    def _rewrite(self, state: State) -> None:
        """Replaces the file by the shortest one of the same state; the old one stays until it is whole."""
        path = self._path.with_suffix(".new")
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        try:
            size = _write(file, _MAGIC)
            for record in state.records():
                size += _write(file, _framed(record))
            path.replace(self._path)
        except BaseException:
            os.close(file)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file = file
        self.size = size
        self._limit = max(self._minimum, size * _COMPACT_FACTOR)

    def close(self) -> None:
        """Gives the data directory free."""
        os.close(self._file)
        os.close(self._lock)


def replay(path: Path) -> State:
    """The state that the journal at `path` adds up to; a last record that is cut off is left out."""
    return _replay(path)[0]


def _replay(path: Path) -> tuple[State, int]:
    """The state, and where the last whole record ends; 0 where there is no file."""
    state = State()
    if not path.exists():
        return state, 0
    decoder = msgspec.msgpack.Decoder(Record)
    end = len(_MAGIC)
    for start, data in _records(path):
        try:
            state.apply(decoder.decode(data))
        except (msgspec.MsgspecError, UnicodeDecodeError, KeyError) as error:
            raise _damaged(path, start) from error
        end = start + _FRAME.size + len(data)
    return state, end


def _records(path: Path) -> Iterator[tuple[int, bytes]]:
    """The whole records of the file, each with the byte that it begins at."""
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        if file.read(len(_MAGIC)) != _MAGIC:
            raise JournalError(f"{path} is not a journal of this version. Move it away to start empty.")
        while True:
            start = file.tell()
            frame = file.read(_FRAME.size)
            if len(frame) < _FRAME.size:
                return
            length, checksum = _FRAME.unpack(frame)
            data = file.read(length) if start + _FRAME.size + length <= end else b""
            if len(data) < length or not length:  # zeros are what a power failure may leave
                return
            if zlib.crc32(data) != checksum:
                raise _damaged(path, start)
            yield start, data


def _damaged(path: Path, start: int) -> JournalError:
    return JournalError(f"{path} is damaged at byte {start}. Move it away to start empty.")


def _framed(record: Record) -> bytes:
    data = msgspec.msgpack.encode(record)
    return _FRAME.pack(len(data), zlib.crc32(data)) + data


def _write(file: int, data: bytes) -> int:
    """Writes all of `data`; returns its length."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
    return len(data)


def _lock(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(file, 20).decode(errors="replace").strip() or "unknown"
        os.close(file)
        raise JournalError(
            f"{path.parent} is in use by another local Pub/Sub server (process {owner})."
        ) from error
    os.ftruncate(file, 0)
    os.write(file, f"{os.getpid()}\n".encode())
    return file
