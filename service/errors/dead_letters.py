"""What a caller of the /dead-letters routes is told."""

from __future__ import annotations

from service.errors.problem import ProblemError


class DeadLetterTableNotFoundError(ProblemError):
    status = 404
    code = "dead_letter_table_not_found"
    title = "There is no dead-letter table"


class BigQueryUnavailableError(ProblemError):
    """BigQuery did not answer in time, or asked to be left alone for a while."""

    status = 503
    code = "bigquery_unavailable"
    title = "BigQuery cannot be asked now"
    retryable = True


class BigQueryRefusedError(ProblemError):
    """BigQuery refused the query for good: no permission, no credentials, a table of other columns."""

    status = 502
    code = "bigquery_refused"
    title = "BigQuery refused the query"


class ReplayNotFoundError(ProblemError):
    status = 404
    code = "replay_not_found"
    title = "There is no such replay"


class ReplayInProgressError(ProblemError):
    """One replay at a time; `members` name the one that is under way."""

    status = 409
    code = "replay_in_progress"
    title = "Another replay is under way"
