"""One bounded call of insertAll: rows in, the refused ones out, transient failures tried again."""

from __future__ import annotations

import functools
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple

from transforms import bigquery_tables
from transforms.bigquery_rows import Row, TableRef

_log = logging.getLogger(__name__)

_TRANSIENT_STATUSES = frozenset({429, 500, 502, 503, 504})
# Google speaks of rate limits with status 403 and one of these reasons; rows carry them as well.
_TRANSIENT_REASONS = frozenset(
    {"backendError", "badGateway", "internalError", "rateLimitExceeded", "timeout"}
)
# A row that was well itself, but given up because of a neighbour.
_STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class InsertPolicy:
    """The bounds of writing: sizes of one request, its deadline, and how long one is tried again.

    A request of insertAll may have 10 MB and 50,000 rows. With these values a request that never
    succeeds is given up after at most 6 calls and some 15 s of pauses.
    """

    max_rows: int = 5_000
    max_bytes: int = 9_000_000
    attempts: int = 6
    call_seconds: float = 30.0
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 8.0

    def pause_seconds(self, failures: int) -> float:
        """The pause after the n-th failure in a row, with jitter so that workers spread out."""
        longest = min(self.first_pause_seconds * 2 ** (failures - 1), self.longest_pause_seconds)
        return float(longest * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret


class InsertError(RuntimeError):
    """Rows that BigQuery did not take within the bounds; the runner has to bring the bundle again."""


class Target(NamedTuple):
    """Where rows go. `columns` are the only ones to send; None sends a row as it is."""

    client: Any
    table: TableRef
    columns: frozenset[str] | None = None


class Refusal(NamedTuple):
    """A row that BigQuery will never take, and its reasons as BigQuery gives them."""

    row: Row
    detail: str


@functools.lru_cache(maxsize=16)
def shared_client(project: str, emulator_host: str) -> Any:
    """The one client of this process: `DoFn.setup` runs again for every local micro-batch."""
    return bigquery_tables.client(project, emulator_host)


@functools.lru_cache(maxsize=64)
def shared_columns(table: TableRef, emulator_host: str) -> frozenset[str]:
    """The columns of the table as they were when this process first wrote to it."""
    return bigquery_tables.columns(shared_client(table.project, emulator_host), table)


def insert(
    target: Target, rows: Sequence[Row], policy: InsertPolicy, on_retry: Callable[[], None]
) -> list[Refusal]:
    """Appends the rows and returns those that were refused for good; all others are acknowledged.

    `on_retry` is called before each further call. Raises InsertError when transient failures outlast
    the policy, and whatever BigQuery says of the table as a whole (missing, forbidden).
    """
    refusals: list[Refusal] = []
    waiting = list(rows)
    for failures in range(1, policy.attempts + 1):
        cause: Exception | None = None
        try:
            answers = _call(target, waiting, policy)
        except Exception as error:
            if _is_too_large(error):
                return refusals + _insert_halves(target, waiting, policy, on_retry)
            if not is_transient(error):
                raise
            cause = error
        else:
            waiting, refused = _sort(waiting, answers)
            refusals += refused
            if not waiting:
                return refusals
        why = type(cause).__name__ if cause else "put off by BigQuery"
        if failures == policy.attempts:
            sentence = f"{len(waiting)} rows were not taken by {target.table} in {failures} calls: {why}"
            raise InsertError(sentence) from cause
        pause_seconds = policy.pause_seconds(failures)
        _log.warning("%d rows go to %s again in %.1f s: %s", len(waiting), target.table, pause_seconds, why)
        time.sleep(pause_seconds)
        on_retry()
    raise ValueError("a policy needs at least one attempt")


def is_transient(error: Exception) -> bool:
    """Tells whether the same call may succeed later: overload, a fault on BigQuery's side, the network."""
    import requests.exceptions
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import TransportError

    if isinstance(error, GoogleAPICallError):
        reasons = {item.get("reason") for item in error.errors or () if isinstance(item, dict)}
        return error.code in _TRANSIENT_STATUSES or bool(reasons & _TRANSIENT_REASONS)
    if isinstance(error, requests.exceptions.SSLError):
        return False
    return isinstance(
        error,
        (
            ConnectionError,
            TransportError,
            requests.exceptions.ConnectionError,
            requests.exceptions.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ),
    )


def _call(target: Target, rows: Sequence[Row], policy: InsertPolicy) -> Any:
    columns = target.columns
    if columns is not None:
        rows = [{name: value for name, value in row.items() if name in columns} for row in rows]
    # No insert ids: they would halve the quota for a de-duplication that lasts a minute at best.
    return target.client.insert_rows_json(
        str(target.table),
        rows,
        row_ids=[None] * len(rows),
        skip_invalid_rows=True,
        retry=None,
        timeout=policy.call_seconds,
    )


def _is_too_large(error: Exception) -> bool:
    return getattr(error, "code", None) == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


def _insert_halves(
    target: Target, rows: Sequence[Row], policy: InsertPolicy, on_retry: Callable[[], None]
) -> list[Refusal]:
    if len(rows) == 1:
        return [Refusal(rows[0], "the row is too large for a request")]
    on_retry()
    middle = len(rows) // 2
    halves = (rows[:middle], rows[middle:])
    return [refusal for half in halves for refusal in insert(target, half, policy, on_retry)]


def _sort(rows: Sequence[Row], answers: Sequence[dict[str, Any]]) -> tuple[list[Row], list[Refusal]]:
    """Divides the rows that were not taken into those to try again and those refused for good."""
    errors_by_index: dict[int, list[dict[str, Any]]] = {}
    for answer in answers:
        errors_by_index.setdefault(answer["index"], []).extend(answer["errors"])
    again: list[Row] = []
    refused: list[Refusal] = []
    for index, errors in errors_by_index.items():
        reasons = {error.get("reason") for error in errors}
        if reasons <= _TRANSIENT_REASONS | {_STOPPED}:
            again.append(rows[index])
        else:
            refused.append(Refusal(rows[index], _detail(errors)))
    return again, refused


def _detail(errors: Sequence[dict[str, Any]]) -> str:
    return "; ".join(
        f"{error.get('reason', '')} {error.get('location', '')}: {error.get('message', '')}".strip()
        for error in errors
    )
