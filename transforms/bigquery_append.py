"""AppendRows: encoded rows over one connection to the Storage Write API, default stream, at least once."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any
from urllib.parse import quote

import grpc

from transforms.bigquery_delivery import TAKEN, Answer, SchemaDoubtError, TransientError, WriteError
from transforms.bigquery_protobuf import RowMessages
from transforms.bigquery_rows import Row, TableRef

GOOGLE = "bigquerystorage.googleapis.com:443"
SCOPES = ("https://www.googleapis.com/auth/bigquery",)
METHOD = "/google.cloud.bigquery.storage.v1.BigQueryWrite/AppendRows"
ROW_OVERHEAD_BYTES = 6  # the tag and the length of a row in its request
TRACE_ID = "signin"

_log = logging.getLogger(__name__)
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]
_PERMANENT = frozenset(
    {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNIMPLEMENTED,
        # What has no place on the default stream, which has no offsets.
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.OUT_OF_RANGE,
    }
)
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def open_channel(emulator_host: str = "") -> grpc.Channel:
    """A channel to an emulator at `host:port`, else to Google.

    Raises google.auth's DefaultCredentialsError.
    """
    if emulator_host:
        return grpc.insecure_channel(emulator_host, options=_OPTIONS)
    import google.auth
    from google.auth.transport.grpc import secure_authorized_channel
    from google.auth.transport.requests import Request

    credentials, _ = google.auth.default(scopes=SCOPES)
    return secure_authorized_channel(credentials, Request(), GOOGLE, options=_OPTIONS)


class AppendRows:
    """The requests of one table with the columns that it has, over a connection that is kept. Thread-safe.

    A broken connection is replaced at the next request. `columns` maps names to fields as
    `bigquery_tables.columns` gives them.
    """

    row_overhead_bytes = ROW_OVERHEAD_BYTES

    def __init__(
        self, channel: grpc.Channel, table: TableRef, columns: Mapping[str, Any], call_seconds: float
    ) -> None:
        self._channel = channel
        self._table = table
        self._stream = (
            f"projects/{table.project}/datasets/{table.dataset}/tables/{table.table}/streams/_default"
        )
        self._columns = columns
        self._messages = RowMessages(columns)
        self._call_seconds = call_seconds
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self.has_other_columns = False

    def encode(self, row: Row) -> bytes:
        """The row as a protobuf message, without what the table has no column for."""
        return self._messages.encode(row)

    def send(self, rows: Sequence[bytes]) -> Answer:
        """One request and its answer.

        Raises TransientError, SchemaDoubtError, and WriteError where the table is at fault.
        """
        connection, future = self._submit(rows)
        try:
            response = future.result(self._call_seconds)
        except TimeoutError:
            connection.cancel()
            raise TransientError(f"no answer in {self._call_seconds:g} s") from None
        except grpc.RpcError as error:
            raise self._failure(error.code(), error.details() or "") from error
        return self._answer(response, len(rows))

    def retire(self) -> None:
        """Closes the connection when what it carries is answered; a later request opens another."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection:
            connection.close()

    def apart(self) -> AppendRows:
        """The same requests over a connection of their own, which is opened at the first.

        One that is refused may end its connection, and with it what others have under way there.
        """
        return AppendRows(self._channel, self._table, self._columns, self._call_seconds)

    def _submit(self, rows: Sequence[bytes]) -> tuple[_Connection, Future[Any]]:
        with self._lock:
            if self._connection is None or self._connection.is_broken():
                self._connection = _Connection(self._channel, self._stream, self._messages.schema())
            return self._connection, self._connection.submit(rows)

    def _answer(self, response: Any, count: int) -> Answer:
        if response.row_errors:
            # Nothing of the request was appended.
            refused = {error.index: f"{_code_name(error)}: {error.message}" for error in response.row_errors}
            return Answer(refused, [index for index in range(count) if index not in refused])
        if response.WhichOneof("response") == "error":
            code = _CODES.get(response.error.code, grpc.StatusCode.UNKNOWN)
            raise self._failure(code, response.error.message)
        if response.HasField("updated_schema"):
            self.has_other_columns = True
        return TAKEN

    def _failure(self, code: grpc.StatusCode, detail: str) -> Exception:
        sentence = f"{code.name}: {detail}"
        if code in _PERMANENT:
            return WriteError(f"{self._table} cannot be written to: {sentence}")
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return SchemaDoubtError(sentence)
        return TransientError(sentence)


class _Connection:
    """One call of AppendRows: requests go in order, and so come their answers."""

    def __init__(self, channel: grpc.Channel, stream: str, schema: Any) -> None:
        from google.cloud.bigquery_storage_v1 import types

        self._request = types.AppendRowsRequest.pb()
        self._first: Any = self._request(write_stream=stream, trace_id=TRACE_ID)
        self._first.proto_rows.writer_schema.CopyFrom(schema)
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._pending: deque[Future[Any]] = deque()
        self._lock = threading.Lock()
        self._broken = False
        call = channel.stream_stream(
            METHOD,
            request_serializer=self._request.SerializeToString,
            response_deserializer=types.AppendRowsResponse.pb().FromString,
        )
        self._call = call(
            iter(self._queue.get, None),
            metadata=(("x-goog-request-params", f"write_stream={quote(stream, safe='')}"),),
        )
        threading.Thread(target=self._read, name="append-rows", daemon=True).start()

    def is_broken(self) -> bool:
        """Whether the call has ended, by the server or by `close`."""
        return self._broken

    def submit(self, rows: Sequence[bytes]) -> Future[Any]:
        """Sends a request; its future has the response, or the RpcError that ended the call."""
        future: Future[Any] = Future()
        with self._lock:
            if self._broken:
                future.set_exception(_ClosedError())
                return future
            request, self._first = self._first or self._request(), None
            request.proto_rows.rows.serialized_rows.extend(rows)
            self._pending.append(future)
            self._queue.put(request)
        return future

    def close(self) -> None:
        """Sends nothing more; the answers that are due still come."""
        self._queue.put(None)

    def cancel(self) -> None:
        """Ends the call at once; what is not answered fails."""
        self._call.cancel()

    def _read(self) -> None:
        error: Exception = _ClosedError()
        try:
            for response in self._call:
                with self._lock:
                    future = self._pending.popleft() if self._pending else None
                if future is None:
                    # Answers go by their order, so none that follows could be trusted.
                    _log.warning("AppendRows answered more than it was asked; another connection follows")
                    break
                future.set_result(response)
        except grpc.RpcError as failure:
            error = failure
        finally:
            self._end(error)

    def _end(self, error: Exception) -> None:
        """Nothing is read any more: what is not answered fails, and so does what is submitted later.

        Answers go by their order, so the error is about the oldest; the others are not to blame.
        """
        self.cancel()
        with self._lock:
            self._broken = True
            pending, self._pending = self._pending, deque()
        self._queue.put(None)
        for future in pending:
            future.set_exception(error)
            error = _ClosedError()


class _ClosedError(grpc.RpcError):  # type: ignore[misc]
    """The call ended in order, with requests unanswered; the server does that to one that was idle."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "the connection was closed"


def _code_name(error: Any) -> str:
    from google.cloud.bigquery_storage_v1 import types

    try:
        return str(types.RowError.RowErrorCode(error.code).name)
    except ValueError:
        return str(error.code)
