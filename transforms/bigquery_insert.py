"""insertAll: encoded rows in one bounded call of BigQuery's REST API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from transforms.bigquery_delivery import TAKEN, Answer, MissingColumn, TooLargeError, TransientError
from transforms.bigquery_rows import Row, TableRef

GOOGLE = "https://bigquery.googleapis.com"
SCOPES = ("https://www.googleapis.com/auth/bigquery",)
ROW_OVERHEAD_BYTES = len('{"json":},')

_TRANSIENT_STATUSES = frozenset({429, 500, 502, 503, 504})
# Google speaks of rate limits with status 403 and one of these reasons; rows carry them as well.
_TRANSIENT_REASONS = frozenset(
    {"backendError", "badGateway", "internalError", "quotaExceeded", "rateLimitExceeded", "timeout"}
)
# A row that was well itself, but given up because of a neighbour.
_STOPPED = "stopped"
_ENCODER = msgspec.json.Encoder()


def open_session(emulator_host: str = "") -> Any:
    """A `requests` session: with Application Default Credentials for Google, without for an emulator.

    Raises google.auth's DefaultCredentialsError.
    """
    from transforms.bounded_http import BoundedAdapter

    if emulator_host:
        import requests

        session = requests.Session()
        session.trust_env = False  # no proxy lies between two programs of one machine
    else:
        import google.auth
        from google.auth.transport.requests import AuthorizedSession

        credentials, _ = google.auth.default(scopes=SCOPES)
        session = AuthorizedSession(credentials)
    for scheme in ("http://", "https://"):
        session.mount(scheme, BoundedAdapter())
    return session


class InsertAll:
    """The requests of one table with the columns that it has. Thread-safe as far as its session is."""

    row_overhead_bytes = ROW_OVERHEAD_BYTES
    has_other_columns = False

    def __init__(
        self,
        session: Any,
        table: TableRef,
        columns: Mapping[str, Any],
        emulator_host: str,
        call_seconds: float,
    ) -> None:
        base = emulator_host.rstrip("/") if "://" in emulator_host else f"http://{emulator_host}"
        self._url = (
            f"{base if emulator_host else GOOGLE}/bigquery/v2/projects/{table.project}"
            f"/datasets/{table.dataset}/tables/{table.table}/insertAll"
        )
        self._session = session
        self._columns = columns
        self._call_seconds = call_seconds

    def encode(self, row: Row) -> bytes:
        """The row as JSON, without what the table has no column for."""
        if row.keys() <= self._columns.keys():
            return _ENCODER.encode(row)
        return _ENCODER.encode({name: value for name, value in row.items() if name in self._columns})

    def send(self, rows: Sequence[bytes]) -> Answer:
        """One call. Raises TransientError, TooLargeError, and GoogleAPICallError of the table as a whole."""
        from transforms.bounded_http import Deadline

        # No insert ids: they would halve the quota for a de-duplication that lasts a minute at best.
        body = b'{"skipInvalidRows":true,"rows":[{"json":%s}]}' % b'},{"json":'.join(rows)
        deadline = Deadline(self._call_seconds)
        try:
            with deadline:
                errors = self._post(body)
        except Exception as error:
            if deadline.is_over:
                raise TransientError(f"no answer in {self._call_seconds:g} s") from error
            if is_transient(error):
                raise TransientError(type(error).__name__) from error
            raise
        return _answer(errors, self._columns) if errors else TAKEN

    def apart(self) -> InsertAll:
        """Itself: each request has a connection of the session's for as long as it lasts."""
        return self

    def retire(self) -> None:
        """Nothing is held: the session is the process's."""

    def _post(self, body: bytes) -> Sequence[Mapping[str, Any]]:
        response = self._session.post(
            self._url, data=body, headers={"Content-Type": "application/json"}, timeout=self._call_seconds
        )
        if response.status_code != HTTPStatus.OK:
            raise _failure(response)
        return response.json().get("insertErrors", ())  # type: ignore[no-any-return]


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
            requests.exceptions.JSONDecodeError,  # an answer that was cut off
        ),
    )


def _failure(response: Any) -> Exception:
    from google.api_core.exceptions import from_http_response

    if response.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return TooLargeError("the row is too large for a request")
    return from_http_response(response)  # type: ignore[no-any-return]


def _answer(answers: Sequence[Mapping[str, Any]], columns: Mapping[str, Any]) -> Answer:
    """Divides the rows that were not taken into those to try again and those refused for good."""
    errors_by_index: dict[int, list[Mapping[str, Any]]] = {}
    for answer in answers:
        errors_by_index.setdefault(answer["index"], []).extend(answer["errors"])
    again: list[int] = []
    refused: dict[int, str] = {}
    for index, errors in errors_by_index.items():
        if {error.get("reason") for error in errors} <= _TRANSIENT_REASONS | {_STOPPED}:
            again.append(index)
        else:
            is_missing = all(_is_missing(error, columns) for error in errors)
            refused[index] = MissingColumn(_detail(errors)) if is_missing else _detail(errors)
    return Answer(refused, again)


def _is_missing(error: Mapping[str, Any], columns: Mapping[str, Any]) -> bool:
    """Whether it is about a column that the table is known to have."""
    column = str(error.get("location", "")).partition(".")[0]
    return column in columns and str(error.get("message", "")).startswith("no such field")


def _detail(errors: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(
        f"{error.get('reason', '')} {error.get('location', '')}: {error.get('message', '')}".strip()
        for error in errors
    )
