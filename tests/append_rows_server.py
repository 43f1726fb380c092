"""The Storage Write API's AppendRows as Google describes it, strict about the protocol, with a fault switch.

In a test it runs on threads of the process; `python -m tests.append_rows_server` is a process that prints
`{"ready": "HOST:PORT"}` and takes rows until its standard input ends.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

import grpc
from google.cloud.bigquery_storage_v1 import types
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, unknown_fields
from google.protobuf.message import DecodeError
from google.rpc import code_pb2

from transforms.bigquery_append import METHOD
from transforms.bigquery_rows import DEAD_LETTER_SCHEMA, SIGNIN_SCHEMA, TableRef

MAX_REQUEST_BYTES = 10_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Request = types.AppendRowsRequest.pb()
Response = types.AppendRowsResponse.pb()
FIELDS_ERROR = int(types.RowError.RowErrorCode.FIELDS_ERROR)
Field = descriptor_pb2.FieldDescriptorProto
TAKEN_BY = {  # of Google's table of types those that this project's columns need
    "STRING": {Field.TYPE_STRING},
    "BYTES": {Field.TYPE_BYTES, Field.TYPE_STRING},
    "TIMESTAMP": {Field.TYPE_INT64, Field.TYPE_INT32, Field.TYPE_UINT32},
    "RECORD": {Field.TYPE_MESSAGE, Field.TYPE_GROUP},
}
FIRST_MICROS = (datetime(1, 1, 1, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
LAST_MICROS = (datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)


class AbortError(Exception):
    """Ends the connection with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code, self.details = code, details


def _invalid(details: str) -> AbortError:
    return AbortError(grpc.StatusCode.INVALID_ARGUMENT, details)


@dataclass
class Table:
    """A table of the server: its schema, and the rows that were taken, as dictionaries without NULLs."""

    schema: list[dict[str, Any]]
    rows: list[dict[str, Any]] = field(default_factory=list)
    has_changed: bool = False  # since the last answer


Judge = Callable[[dict[str, Any]], str]  # why a row is refused; empty if it is not


class AppendRowsServer:
    """Tables by name, and what happens to requests.

    `script` holds what becomes of the next requests, one entry each: a gRPC status ends the connection, a
    `google.rpc` code is the error of the answer, `lost` takes the rows and ends the connection instead of
    answering, `twice` gives the answer once too often, `silent` never answers, None takes the rows. `refuse`
    judges each row; `spoils` tells whose row has its whole request refused as INVALID_ARGUMENT, by its
    `answer` or by the `end` of the connection.
    """

    def __init__(self, keep_rows: bool = True) -> None:
        self.tables: dict[str, Table] = {}
        self.script: deque[Any] = deque()
        self.refuse: Judge = lambda _: ""
        self.spoils: Judge = lambda _: ""
        self.spoilt = 0  # requests
        self.requests: list[int] = []  # rows of each
        self.sizes: list[int] = []
        self.connections = 0
        self.faults: list[str] = []  # what a strict server finds to say of its client
        self.calls: Counter[str] = Counter()
        self.delay_seconds = 0.0
        self._keep_rows = keep_rows
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=16),
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)],
        )
        service, method = METHOD.strip("/").split("/")
        handler = grpc.stream_stream_rpc_method_handler(
            self._append, Request.FromString, Response.SerializeToString
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: handler}),)
        )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> AppendRowsServer:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.stop(0).wait(10)

    def create(self, table: TableRef, schema: list[dict[str, Any]]) -> Table:
        name = f"projects/{table.project}/datasets/{table.dataset}/tables/{table.table}"
        self.tables[name] = Table(schema)
        return self.tables[name]

    def delete(self, table: TableRef) -> None:
        del self.tables[f"projects/{table.project}/datasets/{table.dataset}/tables/{table.table}"]

    def _append(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        self.connections += 1
        connection = _Connection(self, dict(context.invocation_metadata()))
        try:
            for request in requests:
                with self._lock:
                    step = self.script.popleft() if self.script else None
                if step == "silent":
                    self._closing.wait(20)
                    return
                if self.delay_seconds and self._closing.wait(self.delay_seconds):
                    return
                response = connection.answer(request, step)
                yield from [response] * (2 if step == "twice" else 1)
        except AbortError as abort:
            context.abort(abort.code, abort.details)

    def take(self, request: Any, table: Table, rows: list[dict[str, Any]]) -> None:
        with self._lock:
            self.requests.append(len(rows))
            self.sizes.append(request.ByteSize())
            if self._keep_rows:
                table.rows += rows


class _Connection:
    """What one connection has said so far: its stream and its writer's schema."""

    def __init__(self, server: AppendRowsServer, metadata: dict[str, str]) -> None:
        self._server = server
        self._routing = unquote(metadata.get("x-goog-request-params", ""))
        self._stream = ""
        self._message: Any = None

    def answer(self, request: Any, step: Any) -> Any:
        if isinstance(step, grpc.StatusCode):
            raise AbortError(step, "scripted")
        table = self._open(request)
        if request.ByteSize() > MAX_REQUEST_BYTES:
            raise _invalid(f"more than {MAX_REQUEST_BYTES} bytes")
        if request.HasField("offset"):
            raise _invalid("the default stream has no offsets")
        response = Response(write_stream=self._stream)
        if isinstance(step, int):
            response.error.code, response.error.message = step, "scripted"
            return response
        rows, errors = self._rows(request, table)
        if errors or self._is_spoilt(rows):
            response.error.code = code_pb2.INVALID_ARGUMENT
            response.error.message = "rows are corrupted" if errors else "bad request"
            for index, message in errors.items():
                response.row_errors.add(index=index, code=FIELDS_ERROR, message=message)
            return response
        self._server.take(request, table, rows)
        if step == "lost":
            raise AbortError(grpc.StatusCode.UNAVAILABLE, "the answer was lost")
        response.append_result.SetInParent()
        if table.has_changed:
            table.has_changed = False
            for column in table.schema:
                response.updated_schema.fields.add(name=column["name"])
        return response

    def _is_spoilt(self, rows: list[dict[str, Any]]) -> bool:
        way = next(filter(None, map(self._server.spoils, rows)), "")
        self._server.spoilt += bool(way)
        if way == "end":
            raise _invalid("bad request")
        return bool(way)

    def _open(self, request: Any) -> Table:
        name = request.write_stream
        if not self._stream:
            if not name or not request.proto_rows.HasField("writer_schema"):
                raise AbortError(
                    grpc.StatusCode.INVALID_ARGUMENT, "the first request names stream and schema"
                )
            if self._routing != f"write_stream={name}":
                self._server.faults.append(f"routing header {self._routing!r} for {name}")
            self._stream = name
        elif name and name != self._stream:
            raise _invalid("another stream on the same connection")
        table_name, _, stream = self._stream.partition("/streams/")
        table = self._server.tables.get(table_name)
        if table is None or stream != "_default":
            raise AbortError(grpc.StatusCode.NOT_FOUND, f"Requested entity was not found: {self._stream}")
        if request.proto_rows.HasField("writer_schema"):
            self._message = _message_class(request.proto_rows.writer_schema.proto_descriptor, table.schema)
        return table

    def _rows(self, request: Any, table: Table) -> tuple[list[dict[str, Any]], dict[int, str]]:
        rows: list[dict[str, Any]] = []
        errors: dict[int, str] = {}
        if not request.proto_rows.rows.serialized_rows:
            raise _invalid("a request without rows")
        for index, serialized in enumerate(request.proto_rows.rows.serialized_rows):
            try:
                row = _row(self._message.FromString(serialized), table.schema)
                refusal = _fault(row, table.schema) or self._server.refuse(row)
            except DecodeError as error:
                row, refusal = {}, str(error)
            if refusal:
                errors[index] = refusal
            rows.append(row)
        return rows, errors


def _message_class(descriptor: Any, schema: list[dict[str, Any]]) -> Any:
    """The class of the writer's rows, if its schema fits the table's."""
    _require_fit(descriptor, schema)
    file = descriptor_pb2.FileDescriptorProto(name="received.proto", syntax="proto2")
    file.message_type.append(descriptor)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(descriptor.name))


def _require_fit(descriptor: Any, schema: list[dict[str, Any]]) -> None:
    columns = {column["name"]: column for column in schema}
    nested = {one.name: one for one in descriptor.nested_type}
    for described in descriptor.field:
        column = columns.get(described.name)
        if column is None:
            raise AbortError(
                grpc.StatusCode.INVALID_ARGUMENT, f"Input schema has more fields: {described.name}"
            )
        if described.type not in TAKEN_BY[column["type"]]:
            raise AbortError(
                grpc.StatusCode.INVALID_ARGUMENT, f"the type of {described.name} does not convert"
            )
        if (described.label == Field.LABEL_REPEATED) != (column["mode"] == "REPEATED"):
            raise AbortError(
                grpc.StatusCode.INVALID_ARGUMENT, f"{described.name} is repeated on one side alone"
            )
        if column["type"] == "RECORD":
            _require_fit(nested[described.type_name.rpartition(".")[2]], column["fields"])


def _row(message: Any, schema: list[dict[str, Any]]) -> dict[str, Any]:
    """The message as a dictionary without what is not set; times are datetimes where they are in range."""
    if len(unknown_fields.UnknownFieldSet(message)):
        raise DecodeError("the row has fields that its schema has not")
    columns = {column["name"]: column for column in schema}
    row: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        column = columns[descriptor.name]
        if column["type"] == "RECORD":
            row[descriptor.name] = [_row(record, column["fields"]) for record in value]
        elif column["type"] == "TIMESTAMP" and FIRST_MICROS <= value <= LAST_MICROS:
            row[descriptor.name] = EPOCH + timedelta(microseconds=value)
        else:
            row[descriptor.name] = value
    return row


def _fault(row: dict[str, Any], schema: list[dict[str, Any]]) -> str:
    """What BigQuery would refuse the row for."""
    for column in schema:
        value = row.get(column["name"])
        if value is None and column["mode"] == "REQUIRED":
            return f"Field {column['name']} is required"
        if column["type"] == "TIMESTAMP" and isinstance(value, int):
            return f"Field {column['name']} is out of range"
        if column["type"] == "RECORD":
            for record in value or ():
                if fault := _fault(record, column["fields"]):
                    return fault
    return ""


def main() -> None:
    """A server that keeps no rows, for benchmarks; it has the tables whose names are its arguments."""
    with AppendRowsServer(keep_rows=False) as server:
        for name in sys.argv[1:]:
            schema = DEAD_LETTER_SCHEMA if name.endswith("dead_letters") else SIGNIN_SCHEMA
            server.create(TableRef(*name.split(".")), schema)
        print(json.dumps({"ready": server.address}), flush=True)  # noqa: T201 - how it says its address
        sys.stdin.read()


if __name__ == "__main__":
    main()
