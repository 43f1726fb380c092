"""Rows in bounded requests, whatever the protocol: tried again by class of error, refused rows out."""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from transforms.bigquery_rows import Row

_log = logging.getLogger(__name__)
# How the rows are found for which requests are refused as a whole.
_ABREAST = 32  # parts that are searched in turn
_FEW_ROWS = 4  # that go one by one: their halves would take as many calls for one bad row, and more for two
_FIRST_DOUBTS = 2 * _ABREAST  # refusals before time can be up: each of these parts is tried by then
_DOUBT_SECONDS = 600.0  # as long such a doubt can be settled by other rows that are taken
_MOST_ALONE = 16  # rows refused one by one, and none taken; of more the table must be the cause


@dataclass(frozen=True, slots=True)
class WritePolicy:
    """The bounds of writing: when rows are sent, the deadline of one request, and how long it is tried.

    A request of insertAll may have 10 MB and 50,000 rows, one of AppendRows 10 MB. With these values a
    request that never succeeds is given up after at most 6 calls and some 15 s of pauses.
    """

    max_rows: int = 5_000
    max_bytes: int = 9_000_000
    max_seconds: float = 1.0  # that a row waits for others of its bundle, looked at when a chunk is decoded
    attempts: int = 6
    call_seconds: float = 30.0
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 8.0
    columns_seconds: float = 300.0  # after which the columns of the table are read again
    doubt_seconds: float = 30.0  # that a table which refused a request is asked for a row that it takes

    def pause_seconds(self, failures: int) -> float:
        """The pause after the n-th failure in a row, with jitter so that workers spread out."""
        longest = min(self.first_pause_seconds * 2 ** (failures - 1), self.longest_pause_seconds)
        return float(longest * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret


class WriteError(RuntimeError):
    """Rows that BigQuery did not take within the bounds; the runner has to bring the bundle again."""


class TransientError(Exception):
    """The same request may succeed later: overload, a fault on BigQuery's side, the network."""


class TooLargeError(Exception):
    """The request as a whole is too large; its halves may be taken."""


class SchemaDoubtError(Exception):
    """The request does not fit the table. Its columns may have changed since they were read."""


class Answer(NamedTuple):
    """What became of a request's rows, by their index in it. All others were taken."""

    refused: Mapping[int, str]  # for good, with the reasons as BigQuery gives them
    again: Sequence[int] = ()  # not taken, though nothing is wrong with them


class MissingColumn(str):
    """Why a row was refused, where that is a column which the table has: BigQuery may not know it yet."""

    __slots__ = ()


class Protocoled(Protocol):
    """What `InsertAll` and `AppendRows` have in common."""

    row_overhead_bytes: int
    has_other_columns: bool  # whether BigQuery said so of the table

    def encode(self, row: Row) -> bytes: ...
    def send(self, rows: Sequence[bytes]) -> Answer: ...
    def apart(self) -> Protocoled: ...
    def retire(self) -> None: ...


Send = Callable[[Sequence[bytes]], Answer]
TAKEN = Answer({})


def deliver(
    send: Send, rows: Sequence[bytes], policy: WritePolicy, on_retry: Callable[[], None], table: object
) -> dict[int, str]:
    """Sends one request's encoded rows; returns why some were refused for good, by index.

    `on_retry` is called before each further call. Raises WriteError when transient failures outlast the
    policy, SchemaDoubtError, and whatever `send` raises of the table as a whole (missing, forbidden).
    """
    if policy.attempts < 1:
        raise ValueError("a policy needs at least one attempt")
    refused: dict[int, str] = {}
    waiting: Sequence[int] = range(len(rows))
    failures = 0
    while waiting:
        cause: Exception | None = None
        try:
            answer = send(rows if len(waiting) == len(rows) else [rows[index] for index in waiting])
        except TooLargeError as error:
            return refused | _halves(send, rows, waiting, policy, on_retry, table, error)
        except TransientError as error:
            cause = error
        else:
            refused.update((waiting[index], detail) for index, detail in answer.refused.items())
            waiting = [waiting[index] for index in answer.again]
            if not waiting:
                break
            if answer.refused:  # what stood in the way is gone, and there are ever fewer rows
                on_retry()
                continue
        failures += 1
        pause(failures, len(waiting), cause, policy, table)
        on_retry()
    return refused


class Sifted(NamedTuple):
    """What became of rows of which a request as a whole was refused, by their index."""

    refused: Mapping[int, str]  # as `deliver` gives it
    suspects: Mapping[int, str]  # rows that were refused alone as their request was, and why
    has_taken: bool  # whether the table took any row, so that it is not at fault


class Trust:
    """Whether a table that refused all rows of a batch takes others, so that these are at fault."""

    def __init__(self) -> None:
        self._taken_at = self._doubted_at = float("-inf")

    def take(self) -> None:
        """Notes that it took a row."""
        self._taken_at = time.monotonic()

    def doubt(self) -> None:
        """Notes that it took none of a batch."""
        self._doubted_at = time.monotonic()

    def settles(self) -> bool:
        """Whether it took a row since the last doubt; if not, this is one. Each doubt wants its own proof."""
        now = time.monotonic()
        is_proven = self._taken_at >= self._doubted_at and now - self._doubted_at <= _DOUBT_SECONDS
        self._doubted_at = float("-inf") if is_proven else now
        return is_proven


def sift(
    send: Send,
    rows: Sequence[bytes],
    parts: Sequence[tuple[int, int]],
    policy: WritePolicy,
    on_retry: Callable[[], None],
    table: object,
) -> Sifted:
    """Sends the rows in ever smaller requests until those at fault stand alone.

    `parts` are requests as pairs of first index and the one behind the last, the first of them refused
    already. Once a row is taken the search goes on to its end: a bundle that failed then would write its rows
    again. That is at most three requests a row and one a part. Raises what `deliver` does, and
    SchemaDoubtError where it must be the table: it took none in `doubt_seconds`, or none of many rows.
    """
    refused: dict[int, str] = {}
    suspects: dict[int, str] = {}
    has_taken = False
    doubts = 0
    until = time.monotonic() + policy.doubt_seconds
    # Each lot is what is left of a part. By turns, so that rows at fault hide no others behind them.
    lots = deque([part] for part in (*parts[1:], *_divided(*parts[0])))
    while lots:
        lot = lots.popleft()
        start, stop = lot.pop()
        on_retry()
        try:
            found = deliver(send, rows[start:stop], policy, on_retry, table)
        except SchemaDoubtError as error:
            doubts += 1
            if not has_taken and doubts >= _FIRST_DOUBTS and time.monotonic() > until:
                raise
            if stop - start == 1:
                suspects[start] = str(error)
            elif len(lots) < _ABREAST:
                lots.extend([part] for part in _divided(start, stop))
            else:
                lot += reversed(_divided(start, stop))
        else:
            refused.update((start + index, detail) for index, detail in found.items())
            if not has_taken and len(found) < stop - start:
                has_taken = True
                # The table may have been mended meanwhile: what it refused before says nothing of the rows.
                lots.extend([(index, index + 1)] for index in suspects)
                suspects.clear()
        if lot:
            lots.append(lot)
    if not has_taken and len(suspects) > _MOST_ALONE:
        raise SchemaDoubtError(next(iter(suspects.values())))
    return Sifted(refused, suspects, has_taken)


def _divided(start: int, stop: int) -> list[tuple[int, int]]:
    """The halves of a part, or each of its rows where they are few."""
    if stop - start <= _FEW_ROWS:
        return [(index, index + 1) for index in range(start, stop)]
    middle = (start + stop) // 2
    return [(start, middle), (middle, stop)]


def requests(sizes: Sequence[int], policy: WritePolicy) -> Iterator[tuple[int, int]]:
    """Where to divide encoded rows of these sizes: pairs of first index and the one behind the last."""
    start = total = 0
    for index, size in enumerate(sizes):
        if index > start and (index - start >= policy.max_rows or total + size > policy.max_bytes):
            yield start, index
            start, total = index, 0
        total += size
    if start < len(sizes):
        yield start, len(sizes)


def pause(failures: int, rows: int, cause: Exception | None, policy: WritePolicy, table: object) -> None:
    """Waits after the n-th failure in a row. Raises WriteError if the policy has no further attempt."""
    why = str(cause) if cause else "put off by BigQuery"
    if failures >= policy.attempts:
        raise WriteError(f"{rows} rows were not taken by {table} in {failures} calls: {why}") from cause
    pause_seconds = policy.pause_seconds(failures)
    _log.warning("%d rows go to %s again in %.1f s: %s", rows, table, pause_seconds, why)
    time.sleep(pause_seconds)


def _halves(
    send: Send,
    rows: Sequence[bytes],
    waiting: Sequence[int],
    policy: WritePolicy,
    on_retry: Callable[[], None],
    table: object,
    error: TooLargeError,
) -> dict[int, str]:
    if len(waiting) == 1:
        return {waiting[0]: str(error) or "the row is too large for a request"}
    on_retry()
    middle = len(waiting) // 2
    refused: dict[int, str] = {}
    for half in (waiting[:middle], waiting[middle:]):
        found = deliver(send, [rows[index] for index in half], policy, on_retry, table)
        refused.update((half[index], detail) for index, detail in found.items())
    return refused
