"""Two BigQuery servers for tests: the local one as a process, and a strict one that refuses on demand."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from transforms import bigquery_writer
from transforms.bigquery_rows import DEAD_LETTER_SCHEMA, SIGNIN_SCHEMA

PROJECT = "signin-local"
MAX_REQUEST_BYTES = 10_000_000
Answer = tuple[int, dict[str, Any]]


@contextmanager
def local_bigquery(data_dir: Path) -> Iterator[str]:
    """Runs the local BigQuery; yields its URL."""
    command = [sys.executable, "-m", "service.local.lifeline", "service.local.bigquery"]
    with (data_dir / "bigquery.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--data-dir", str(data_dir), "--project", PROJECT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        line = process.stdout.readline()
        assert line, (data_dir / "bigquery.log").read_text()
        yield json.loads(line)["ready"]
    finally:
        process.terminate()
        process.communicate(timeout=20)
        forget_clients()


def set_faults(url: str, *faults: dict[str, Any]) -> None:
    request = urllib.request.Request(f"{url}/signin/faults", json.dumps(faults).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert answer.status == 200


async def queries_more(url: str, count: int) -> None:
    """Waits until the local BigQuery was asked so many queries more."""
    async with httpx.AsyncClient() as client, asyncio.timeout(20):

        async def queries() -> int:
            calls = (await client.get(f"{url}/signin/faults")).json()
            return calls.get("queries", 0) + calls.get("jobs", 0)  # either way of asking

        before = await queries()
        while await queries() < before + count:  # noqa: ASYNC110 - the server is asked
            await asyncio.sleep(0.02)


def forget_clients() -> None:
    """Closes the clients of this process, as its end would."""
    bigquery_writer.close_all()


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: a client that no longer waits for its answer is part of the tests."""


class StrictBigQuery:
    """Takes `insertAll` as Google describes it, and answers from a script.

    `script` holds the answers of the next calls, each a pair of status and body or a function of the
    rows that gives one; when it is used up, rows are taken. `taken` has all rows that were.
    """

    def __init__(self, columns: list[str] | None = None) -> None:
        self.script: list[Answer | Callable[[list[dict[str, Any]]], Answer]] = []
        self.requests: list[list[dict[str, Any]]] = []
        self.sizes: list[int] = []
        self.taken: list[dict[str, Any]] = []
        self.table_reads = 0
        self.no_table: Answer | None = None  # what a read of a table gets instead
        self.takes_insert_ids = False  # as Beam's own way to write sends them
        self.columns = columns  # of the tables; None: those that they are made with
        self._server = _QuietServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> StrictBigQuery:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        forget_clients()
        self._server.server_close()

    def fields(self, table: str) -> list[dict[str, Any]]:
        schema = DEAD_LETTER_SCHEMA if "letters" in table else SIGNIN_SCHEMA
        if self.columns is None:
            return schema
        known = {column["name"]: column for column in schema}
        return [known.get(name, {"name": name, "type": "STRING"}) for name in self.columns]

    def insert_all(self, body: bytes) -> Answer:
        request = json.loads(body)
        rows = [entry["json"] for entry in request["rows"]]
        self.requests.append(rows)
        self.sizes.append(len(body))
        assert request["skipInvalidRows"] is True
        assert not request.get("ignoreUnknownValues")
        assert self.takes_insert_ids or all(entry.get("insertId") is None for entry in request["rows"])
        assert len(body) <= MAX_REQUEST_BYTES
        assert len(rows) <= 50_000
        step = self.script.pop(0) if self.script else (200, {})
        status, answer = step(rows) if callable(step) else step
        unknown = {
            index for index, row in enumerate(rows) if self.columns and not set(row) <= set(self.columns)
        }
        if status == 200 and unknown:
            errors = [refusal(index, "invalid", message="no such field") for index in sorted(unknown)]
            answer = {"insertErrors": [*answer.get("insertErrors", []), *errors]}
        if status == 200:
            failed = {error["index"] for error in answer.get("insertErrors", [])}
            self.taken += [row for index, row in enumerate(rows) if index not in failed]
        return status, answer

    def _handler(outer) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler has a self of its own
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.table_reads += 1
                _, project, _, dataset, _, table = self.path.partition("?")[0].split("/")[-6:]
                reference = {"projectId": project, "datasetId": dataset, "tableId": table}
                found = 200, {"tableReference": reference, "schema": {"fields": outer.fields(table)}}
                self._answer(*(outer.no_table or found))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path.partition("?")[0].endswith("/insertAll")
                try:
                    status, answer = outer.insert_all(body)
                except (AssertionError, KeyError, ValueError) as error:  # the client shall see it and fail
                    status, answer = 418, {"error": {"message": f"{type(error).__name__}: {error}"}}
                if status == 0:
                    self.close_connection = True
                    return
                self._answer(status, answer)

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def refusal(index: int, *reasons: str, message: str = "no", location: str = "") -> dict[str, Any]:
    """An entry of `insertErrors`."""
    errors = [{"reason": reason, "message": message, "location": location} for reason in reasons]
    return {"index": index, "errors": errors}


def failure(status: int, reason: str = "") -> Answer:
    errors = [{"reason": reason, "message": "scripted"}] if reason else []
    return status, {"error": {"code": status, "message": "scripted", "errors": errors}}
