"""Rows in bounded requests, whatever the protocol: tried again by class of error, refused rows out."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_log = logging.getLogger(__name__)
# Requests that are refused as a whole, until rows are no longer told from their neighbours.
_MOST_DOUBTS = 2_000
_FIRST_DOUBTS = 32  # the same where the table has taken none


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
    already. Raises what `deliver` does; SchemaDoubtError where so many are refused that it must be the table.
    """
    refused: dict[int, str] = {}
    suspects: dict[int, str] = {}
    has_taken = False
    doubts = 0
    waiting = [*reversed(parts[1:]), *_halved(*parts[0])]
    while waiting:
        start, stop = waiting.pop()
        on_retry()
        try:
            found = deliver(send, rows[start:stop], policy, on_retry, table)
        except SchemaDoubtError as error:
            doubts += 1
            if doubts >= (_MOST_DOUBTS if has_taken else _FIRST_DOUBTS):
                raise
            if stop - start == 1:
                suspects[start] = str(error)
            else:
                waiting += _halved(start, stop)
        else:
            has_taken = True
            refused.update((start + index, detail) for index, detail in found.items())
    return Sifted(refused, suspects, has_taken)


def _halved(start: int, stop: int) -> list[tuple[int, int]]:
    """The first half comes last, where it is taken from."""
    middle = (start + stop) // 2
    return [(middle, stop), (start, middle)] if stop - start > 1 else [(start, stop)]


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
