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
from typing import Any
from urllib.parse import unquote

import grpc
from google.cloud.bigquery_storage_v1 import types
from google.protobuf.message import DecodeError
from google.rpc import code_pb2

from tests.append_rows_schema import AbortError, decoded_row, invalid, message_class, row_fault
from transforms.bigquery_append import METHOD
from transforms.bigquery_rows import DEAD_LETTER_SCHEMA, SIGNIN_SCHEMA, TableRef

MAX_REQUEST_BYTES = 10_000_000
Request = types.AppendRowsRequest.pb()
Response = types.AppendRowsResponse.pb()
FIELDS_ERROR = int(types.RowError.RowErrorCode.FIELDS_ERROR)


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
            raise invalid(f"more than {MAX_REQUEST_BYTES} bytes")
        if request.HasField("offset"):
            raise invalid("the default stream has no offsets")
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
            raise invalid("bad request")
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
            raise invalid("another stream on the same connection")
        table_name, _, stream = self._stream.partition("/streams/")
        table = self._server.tables.get(table_name)
        if table is None or stream != "_default":
            raise AbortError(grpc.StatusCode.NOT_FOUND, f"Requested entity was not found: {self._stream}")
        if request.proto_rows.HasField("writer_schema"):
            self._message = message_class(request.proto_rows.writer_schema.proto_descriptor, table.schema)
        return table

    def _rows(self, request: Any, table: Table) -> tuple[list[dict[str, Any]], dict[int, str]]:
        rows: list[dict[str, Any]] = []
        errors: dict[int, str] = {}
        if not request.proto_rows.rows.serialized_rows:
            raise invalid("a request without rows")
        for index, serialized in enumerate(request.proto_rows.rows.serialized_rows):
            try:
                row = decoded_row(self._message.FromString(serialized), table.schema)
                refusal = row_fault(row, table.schema) or self._server.refuse(row)
            except DecodeError as error:
                row, refusal = {}, str(error)
            if refusal:
                errors[index] = refusal
            rows.append(row)
        return rows, errors


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
