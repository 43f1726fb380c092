"""One table as rows are appended to it: which columns it has now, and by which method it is written to."""

from __future__ import annotations

import atexit
import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from transforms import bigquery_append, bigquery_insert, bigquery_tables
from transforms.bigquery_delivery import (
    MissingColumn,
    Protocoled,
    SchemaDoubtError,
    TransientError,
    Trust,
    WriteError,
    WritePolicy,
    deliver,
    pause,
    requests,
    sift,
)
from transforms.bigquery_rows import Row, TableRef

OwnMethod = Literal["STORAGE_WRITE", "INSERT_ALL"]
_CHANGES = 2  # of the columns while one batch is written
_FRESH_SECONDS = 5.0  # as long columns that were read count as those of now
_LATE_SECONDS = 600.0  # after which insertAll knows the columns that the table has
_AGAIN_SECONDS = 30.0  # after which columns that have grown old and could not be read are looked at again

_log = logging.getLogger(__name__)


class Destination(NamedTuple):
    """A table and the way to it. The emulators are a URL and `host:port`; empty means Google."""

    table: TableRef
    method: OwnMethod = "INSERT_ALL"
    emulator_host: str = ""
    storage_emulator_host: str = ""


class Written(NamedTuple):
    """What became of a batch: why rows were refused, by index, and the bytes of those that were not."""

    refused: Mapping[int, str]
    size_bytes: int


class Writer:
    """Appends batches of rows to one table. One for each process and table; thread-safe."""

    def __init__(
        self, destination: Destination, schema: Sequence[Mapping[str, Any]], policy: WritePolicy
    ) -> None:
        self._destination = destination
        self._schema = schema
        self._policy = policy
        self._lock = threading.Lock()
        self._columns: dict[str, dict[str, Any]] = {}
        self._read_at = self._failed_at = float("-inf")
        self._requests: Protocoled | None = None
        self._adopted_at = float("-inf")
        self._trust = Trust()

    def write(self, rows: Sequence[Row], on_retry: Callable[[], None]) -> Written:
        """Appends the rows; those that are not refused are acknowledged when this returns.

        Raises WriteError, and what Google's libraries raise of a table that is missing or forbidden.
        """
        refused: dict[int, str] = {}
        size_bytes = changes = failures = 0
        waiting: Sequence[int] = range(len(rows))
        while waiting:
            current = self._current()
            unsent, written, doubt = self._write(current, rows, waiting, refused, on_retry)
            size_bytes += written
            # What was refused may be well in a table that has other columns by now.
            waiting = [*unsent, *refused]
            if waiting and changes < _CHANGES and self._has_changed(current, at_once=doubt is not None):
                changes += 1
            elif doubt is not None:
                size_bytes += self._sift(current, rows, unsent, refused, on_retry)
                waiting = list(refused)  # the search may have lasted
                if not waiting or changes >= _CHANGES or not self._has_changed(current, at_once=False):
                    break
                changes += 1
            elif waiting := self._too_early(refused):
                failures += 1
                cause = TransientError(refused[waiting[0]])
                pause(failures, len(waiting), cause, self._policy, self._destination.table)
            else:
                break
            for index in waiting:
                refused.pop(index, None)
            on_retry()
        return Written(refused, size_bytes)

    def close(self) -> None:
        """Closes what is open; a later write opens it again."""
        with self._lock:
            if self._requests:
                self._requests.retire()

    def _write(
        self,
        current: Protocoled,
        rows: Sequence[Row],
        waiting: Sequence[int],
        refused: dict[int, str],
        on_retry: Callable[[], None],
    ) -> tuple[Sequence[int], int, SchemaDoubtError | None]:
        """Adds to `refused`; returns which rows were not sent, the bytes written, and why it ended early."""
        encoded, sizes = _encoded(current, rows, waiting)
        size_bytes = 0
        table = self._destination.table
        for start, stop in requests(sizes, self._policy):
            try:
                found = deliver(current.send, encoded[start:stop], self._policy, on_retry, table)
            except SchemaDoubtError as error:
                return waiting[start:], size_bytes, error
            refused.update((waiting[start + index], detail) for index, detail in found.items())
            size_bytes += sum(sizes[start:stop]) - sum(sizes[start + index] for index in found)
            if len(found) < stop - start:
                self._trust.take()
        return (), size_bytes, None

    def _too_early(self, refused: Mapping[int, str]) -> list[int]:
        """Rows refused for a column that the table has, as long as BigQuery may not know it yet."""
        if time.monotonic() - self._adopted_at > _LATE_SECONDS:
            return []
        return [index for index, detail in refused.items() if isinstance(detail, MissingColumn)]

    def _sift(
        self,
        current: Protocoled,
        rows: Sequence[Row],
        unsent: Sequence[int],
        refused: dict[int, str],
        on_retry: Callable[[], None],
    ) -> int:
        """Writes rows of which a request was refused as a whole, and adds those at fault to `refused`.

        Returns the bytes written. Raises WriteError where no row is taken, for it may be the table, unless
        it did so before and has taken others since.
        """
        encoded, sizes = _encoded(current, rows, unsent)
        table = self._destination.table
        parts = list(requests(sizes, self._policy))
        apart = current.apart()
        try:
            sifted = sift(apart.send, encoded, parts, self._policy, on_retry, table)
        except SchemaDoubtError as doubt:
            self._trust.doubt()
            raise WriteError(f"{table} takes no such rows: {doubt}") from doubt
        finally:
            current.has_other_columns |= apart.has_other_columns
            apart.retire()
        if sifted.has_taken:
            self._trust.take()
        elif sifted.suspects and not self._trust.settles():
            raise WriteError(f"{table} takes no such rows: {next(iter(sifted.suspects.values()))}")
        found = {**sifted.refused, **sifted.suspects}
        refused.update((unsent[index], detail) for index, detail in found.items())
        return sum(sizes) - sum(sizes[index] for index in found)

    def _current(self) -> Protocoled:
        """The requests for the columns that the table has, as far as is known."""
        with self._lock:
            now = time.monotonic()
            if self._requests is None or self._requests.has_other_columns:
                self._read()
            elif (
                now - self._read_at > self._policy.columns_seconds and now - self._failed_at > _AGAIN_SECONDS
            ):
                self._look()
            assert self._requests is not None
            return self._requests

    def _has_changed(self, used: Protocoled, *, at_once: bool) -> bool:
        """Tells whether the table has other columns than those used; looks, unless it did so just now.

        Only what is asked `at_once` needs an answer. Without one the columns count as unchanged: a failure
        here would bring the bundle again, with the rows of it that were taken.
        """
        with self._lock:
            if self._requests is used:
                if at_once:
                    self._read()
                elif time.monotonic() - self._read_at > _FRESH_SECONDS:
                    self._look()
            return self._requests is not used

    def _read(self) -> None:
        self._adopt(self._found())

    def _look(self) -> None:
        """Reads the columns if that can be done now; if not, those that are known still do.

        Rows go another way than this call, whose outage or quota need not stop them.
        """
        from google.api_core.exceptions import NotFound

        try:
            columns = self._found(briefly=True)
        except NotFound:
            raise
        except Exception as error:  # noqa: BLE001 - the network, the credentials, the API: all the same here
            self._failed_at = time.monotonic()
            table = self._destination.table
            _log.warning("The columns of %s could not be read; those known are kept: %s", table, error)
        else:
            self._adopt(columns)

    def _found(self, *, briefly: bool = False) -> dict[str, dict[str, Any]]:
        """The columns that the table has now."""
        destination = self._destination
        client = shared_client(destination.table.project, destination.emulator_host)
        return bigquery_tables.columns(client, destination.table, briefly=briefly)

    def _adopt(self, columns: dict[str, dict[str, Any]]) -> None:
        """Makes the requests those for these columns; raises WriteError if the table cannot take the rows."""
        if columns == self._columns and self._requests is not None:
            self._requests.has_other_columns = False
            self._read_at = time.monotonic()
            return
        if self._requests:
            # Even if no others follow: with the columns of before, rows that have to wait would be refused.
            self._requests.retire()
            self._requests = None
        try:
            bigquery_tables.require_schema(self._destination.table, columns, self._schema)
        except bigquery_tables.SchemaError as error:
            raise WriteError(str(error)) from error
        self._columns = columns
        self._read_at = self._adopted_at = time.monotonic()
        self._requests = self._open(bigquery_tables.filled(columns, self._schema))

    def _open(self, columns: Mapping[str, Mapping[str, Any]]) -> Protocoled:
        table, method, emulator, storage_emulator = self._destination
        if method == "STORAGE_WRITE":
            channel = shared_channel(storage_emulator)
            return bigquery_append.AppendRows(channel, table, columns, self._policy.call_seconds)
        session = shared_session(emulator)
        return bigquery_insert.InsertAll(session, table, columns, emulator, self._policy.call_seconds)


def _encoded(
    current: Protocoled, rows: Sequence[Row], indexes: Sequence[int]
) -> tuple[list[bytes], list[int]]:
    """The rows of these indexes as they are sent, and what each takes of a request, in bytes."""
    encoded = [current.encode(rows[index]) for index in indexes]
    return encoded, [len(row) + current.row_overhead_bytes for row in encoded]


# `DoFn.setup` runs again for every micro-batch of the local engine, so what takes time to open is kept
# for the process.
shared_client = functools.lru_cache(maxsize=16)(bigquery_tables.client)
shared_session = functools.lru_cache(maxsize=4)(bigquery_insert.open_session)
shared_channel = functools.lru_cache(maxsize=4)(bigquery_append.open_channel)


_writers: dict[tuple[Destination, WritePolicy], Writer] = {}
_writers_lock = threading.Lock()


def shared_writer(
    destination: Destination, schema: Sequence[Mapping[str, Any]], policy: WritePolicy
) -> Writer:
    """The one writer of this process to a table."""
    with _writers_lock:
        writer = _writers.get((destination, policy))
        if writer is None:
            if not _writers:
                atexit.register(close_all)
            writer = _writers[destination, policy] = Writer(destination, schema, policy)
        return writer


def close_all() -> None:
    """Closes all connections of this process to BigQuery, as its end would."""
    with _writers_lock:
        for writer in _writers.values():
            writer.close()
        _writers.clear()
    for shared in (shared_client, shared_session, shared_channel):
        shared.cache_clear()
