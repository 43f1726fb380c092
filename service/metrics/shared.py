"""How the processes of one service show each other their numbers: a file without a name, a region for each.

The parent makes the file and hands its descriptor down, so nothing is left behind, however it dies. Who
is asked for the metrics reads what every process wrote within the last second. Each region holds two
copies that are written in turns: one that was cut off, or is being written, leaves the other.
"""

from __future__ import annotations

import logging
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Mapping

import msgspec

log = logging.getLogger(__name__)

HALF_BYTES = 256 * 1024
STALE_SECONDS = 10.0
_HEADER = struct.Struct("<QII")  # number of the copy, length and CRC-32 of what follows

Labelled = list[tuple[tuple[str, ...], float]]
Gauges = Mapping[str, Labelled]


class Snapshot(msgspec.Struct):
    """The numbers of one process; each is a list of label values and what was counted under them.

    `at` is when it was made (seconds of the monotonic clock, which all processes share), `began_at` since
    when it was counted (seconds since 1970).
    """

    at: float
    pid: int
    counters: dict[str, list[tuple[tuple[str, ...], float]]]
    histograms: dict[str, list[tuple[tuple[str, ...], list[int], float]]]
    gauges: Gauges
    began_at: float = 0.0

    @property
    def is_live(self) -> bool:
        """Whether its process was there lately; the gauges of another one mean nothing."""
        return time.monotonic() - self.at < STALE_SECONDS


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Snapshot).decode


def make_file() -> int:
    """A descriptor of an empty file that has no name; the caller closes it."""
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Region:
    """The region `index` of `count` in the file of the descriptor, written by one process at a time."""

    def __init__(self, descriptor: int, index: int, count: int) -> None:
        self._descriptor = descriptor
        self.index = index
        self._count = count
        self._number = max((number for number, _ in self._copies(index)), default=0)

    def write(self, snapshot: Snapshot) -> None:
        """Shows the snapshot; without room for it, in the region or on the disk, the last one stays."""
        payload = _encode(snapshot)
        if len(payload) + _HEADER.size > HALF_BYTES:
            log.error("%d bytes of metrics are more than the workers can share", len(payload))
            return
        number = self._number + 1
        header = _HEADER.pack(number, len(payload), zlib.crc32(payload))
        try:
            os.pwrite(self._descriptor, header + payload, self._offset(self.index, number))
        except OSError as error:
            log.debug("the metrics could not be shared: %s", error)
        else:
            self._number = number

    def own(self) -> Snapshot | None:
        """What was last written here, by this process or the one before it."""
        return self._latest(self.index)

    def others(self) -> list[Snapshot]:
        """What the other processes last wrote."""
        found = (self._latest(index) for index in range(self._count) if index != self.index)
        return [each for each in found if each is not None]

    def _offset(self, index: int, number: int) -> int:
        return (2 * index + number % 2) * HALF_BYTES

    def _latest(self, index: int) -> Snapshot | None:
        copies = self._copies(index)
        return _decode(max(copies)[1]) if copies else None

    def _copies(self, index: int) -> list[tuple[int, bytes]]:
        """The copies of a region that are whole, each with its number."""
        found = []
        for half in (0, 1):
            data = os.pread(self._descriptor, HALF_BYTES, self._offset(index, half))
            if len(data) < _HEADER.size:
                continue
            number, length, checksum = _HEADER.unpack_from(data)
            payload = data[_HEADER.size : _HEADER.size + length]
            if number and zlib.crc32(payload) == checksum:
                found.append((number, payload))
        return found
