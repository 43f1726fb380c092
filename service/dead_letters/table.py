"""The dead-letter table in BigQuery, read with deadlines and a bound on how many queries run at once."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from service.config import Settings
from service.dead_letters.letters import Filters, Letter, Position, advanced, attributes_of, letter_of
from service.errors import (
    BigQueryRefusedError,
    BigQueryUnavailableError,
    ConfigError,
    DeadLetterTableNotFoundError,
    ProblemError,
)
from transforms import bigquery_tables
from transforms.bigquery_rows import parse_table

log = logging.getLogger(__name__)

CALL_SECONDS = 15.0
QUERY_SECONDS = 30.0
# A caller waits for its turn and for its query together no longer than this.
ANSWER_SECONDS = 60.0
MOST_QUERIES = 4
MOST_BATCH_BYTES = 8_000_000
PREVIEW_BYTES = 4096
_WORDS_OF_A_REFUSAL = 300
# The moment alone does not order letters that failed in the same microsecond.
_TIES = ("message_id", "event_id", "TO_HEX(MD5(payload))")
_CONDITIONS = {
    "reason": ("reason = @reason", "STRING"),
    "stage": ("stage = @stage", "STRING"),
    "since": ("failed_at >= @since", "TIMESTAMP"),
    "until": ("failed_at < @until", "TIMESTAMP"),
    "event_id": ("event_id = @event_id", "STRING"),
    "message_id": ("message_id = @message_id", "STRING"),
}
_TABLE = "{table}"  # its name is put in where the settings are at hand
_COLUMNS = "failed_at, stage, reason, detail, attributes, message_id, publish_time, event_id"
_WHOLE = f"{_COLUMNS}, payload"
_SUMMARY = (
    f"{_COLUMNS}, pipeline_version, job_id, BYTE_LENGTH(payload) AS payload_bytes, "
    f"SUBSTR(TO_HEX(payload), 1, {2 * PREVIEW_BYTES}) AS payload"
)
_T = TypeVar("_T")
_Parameters = dict[str, tuple[str, Any]]


class ReasonCount(NamedTuple):
    """How many dead letters have one reason."""

    stage: str
    reason: str
    letters: int


class DeadLetterTable:
    """The table of the settings, for use within one event loop.

    Every method raises DeadLetterTableNotFoundError, BigQueryUnavailableError where asking again may
    help, and BigQueryRefusedError where it will not.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turns = asyncio.Semaphore(MOST_QUERIES)
        self._making = threading.Lock()
        self._made: Any = None

    async def page(
        self, filters: Filters, after: Position | None, size: int
    ) -> tuple[list[dict[str, Any]], Position | None]:
        """Rows, newest first, and where the next page begins. `payload` is the hex of its first bytes."""
        sql, parameters = _paged(_SUMMARY, filters, after, size + 1, newest_first=True)
        rows = await self._ask(sql, parameters, _summaries)
        shown = rows[:size]
        return shown, advanced(after, [row["failed_at"] for row in shown]) if len(rows) > size else None

    async def counts(self, filters: Filters) -> list[ReasonCount]:
        """How many letters there are for each stage and reason, the most frequent first."""
        conditions, parameters = _where(filters)
        sql = (
            f"SELECT stage, reason, COUNT(*) AS n FROM {_TABLE}{conditions} "  # noqa: S608 - constants
            "GROUP BY stage, reason ORDER BY n DESC, stage, reason"
        )
        rows = await self._ask(sql, parameters, list)
        return [ReasonCount(row["stage"], row["reason"], row["n"]) for row in rows]

    async def read(
        self, filters: Filters, after: Position | None, most: int
    ) -> tuple[list[Letter], Position | None]:
        """Whole letters, oldest first: at most `most`, of about MOST_BATCH_BYTES; and the place after them.

        No letters, no more: the place is then None.
        """
        sql, parameters = _paged(_WHOLE, filters, after, most, newest_first=False)
        letters = await self._ask(sql, parameters, _some)
        return letters, advanced(after, [letter.failed_at for letter in letters])

    async def close(self) -> None:
        """Closes the client's connections; queries that are under way then end with an error."""
        if self._made is not None:
            self._made.close()

    async def _ask(self, sql: str, parameters: _Parameters, take: Callable[[Any], _T]) -> _T:
        """What `take` makes of the query's rows, within ANSWER_SECONDS."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._turns.acquire()
                # The turn ends with the thread, not with a caller that has gone.
                return await _in_daemon_thread(lambda: self._run(sql, parameters, take), self._turns.release)
        except TimeoutError as error:
            detail = f"BigQuery did not answer within {ANSWER_SECONDS:g} s."
            raise BigQueryUnavailableError(detail, retry_after_seconds=10) from error

    def _run(self, sql: str, parameters: _Parameters, take: Callable[[Any], _T]) -> _T:
        from google.cloud import bigquery

        try:
            table = parse_table(self._settings.dead_letter_table, self._settings.project)
        except ValueError as error:
            raise BigQueryRefusedError(f"SIGNIN_DEAD_LETTER_TABLE: {error}.") from error
        config = bigquery.QueryJobConfig(
            query_parameters=[
                bigquery.ScalarQueryParameter(name, kind, value) for name, (kind, value) in parameters.items()
            ]
        )
        retry = bigquery.DEFAULT_RETRY.with_timeout(QUERY_SECONDS)
        try:
            # Not query_and_wait: it takes the answer of a query that failed for one without rows where
            # the server tells of the failure only in the job.
            job = self._client().query(
                sql.format(table=f"`{table}`"),
                job_config=config,
                timeout=CALL_SECONDS,
                retry=retry,
                job_retry=None,
            )
            return take(job.result(timeout=QUERY_SECONDS, retry=retry, job_retry=None))
        except ProblemError:
            raise
        except Exception as error:
            raise _problem(error, str(table)) from error

    def _client(self) -> Any:
        with self._making:
            if self._made is None:
                self._made = bigquery_tables.client(
                    self._settings.project, self._settings.bigquery_emulator_host
                )
            return self._made


def _where(filters: Filters, after: str = "") -> tuple[str, _Parameters]:
    """The WHERE clause of the filters, and the parameters that it names."""
    conditions = [after] if after else []
    parameters: _Parameters = {}
    for name, (condition, kind) in _CONDITIONS.items():
        value = getattr(filters, name)
        if value is not None:
            conditions.append(condition)
            parameters[name] = (kind, value)
    return f" WHERE {' AND '.join(conditions)}" if conditions else "", parameters


def _paged(
    columns: str, filters: Filters, after: Position | None, most: int, *, newest_first: bool
) -> tuple[str, _Parameters]:
    """The query of the letters that follow a position, and its parameters."""
    comparison = f"failed_at {'<=' if newest_first else '>='} @at" if after else ""
    conditions, parameters = _where(filters, comparison)
    if after:
        parameters["at"] = ("TIMESTAMP", after.at)
    parameters["most"] = ("INT64", most)
    parameters["skip"] = ("INT64", after.skip if after else 0)
    order = ", ".join(f"{column} {'DESC' if newest_first else 'ASC'}" for column in ("failed_at", *_TIES))
    return (
        f"SELECT {columns} FROM {_TABLE}{conditions} ORDER BY {order} LIMIT @most OFFSET @skip",  # noqa: S608
        parameters,
    )


def _summaries(found: Any) -> list[dict[str, Any]]:
    return [dict(row.items()) | {"attributes": attributes_of(row)} for row in found]


def _some(found: Any) -> list[Letter]:
    """The first letters; what is left out is asked for again from the position behind them."""
    letters: list[Letter] = []
    size = 0
    for row in found:
        letters.append(letter_of(row))
        size += len(letters[-1].payload)
        if size >= MOST_BATCH_BYTES:
            break
    return letters


def _problem(error: Exception, table: str) -> ProblemError:
    """What an error of BigQuery's client means to a caller; its cause is in the log only."""
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    log.warning("the dead letters cannot be read: %s", type(error).__name__)
    log.debug("BigQuery's own error", exc_info=error)
    if isinstance(error, exceptions.NotFound):
        return DeadLetterTableNotFoundError(f"There is no table {table}. The job makes it at its launch.")
    if isinstance(error, exceptions.Forbidden) and not _is_rate_limit(error):
        return BigQueryRefusedError(f"This service may not query {table}.")
    if isinstance(error, exceptions.Unauthorized | GoogleAuthError | ConfigError):
        return BigQueryRefusedError("The credentials of this service are missing or not accepted.")
    if isinstance(error, KeyError | TypeError | AttributeError):
        return BigQueryRefusedError(f"{table} has columns of other types than a dead-letter table.")
    if isinstance(error, exceptions.BadRequest):
        words = str(error.message)[:_WORDS_OF_A_REFUSAL]
        return BigQueryRefusedError(f"BigQuery refused the query: {words}")
    return BigQueryUnavailableError(
        f"BigQuery does not answer now ({type(error).__name__}).", retry_after_seconds=5
    )


def _is_rate_limit(error: Any) -> bool:
    """BigQuery says 403 for what other APIs call 429."""
    reasons = [str(each.get("reason", "")) for each in error.errors if hasattr(each, "get")]
    return any(reason.endswith("LimitExceeded") for reason in reasons)


async def _in_daemon_thread(work: Callable[[], _T], ended: Callable[[], object]) -> _T:
    """What `work` returns or raises; `ended` is called in the loop's thread when the thread has ended.

    A thread of an executor would hold up the end of the process for as long as a query may take.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[_T] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        ended()
        if result.done():
            return
        if error is None:
            result.set_result(value)
        else:
            result.set_exception(error)

    def run() -> None:
        value, failure = None, None
        try:
            value = work()
        except BaseException as error:  # noqa: BLE001 - whatever ends this thread must reach the waiter
            failure = error
        try:
            loop.call_soon_threadsafe(settle, value, failure)
        except RuntimeError:
            log.debug("a query ended after the service")

    threading.Thread(target=run, name="bigquery", daemon=True).start()
    return await result
