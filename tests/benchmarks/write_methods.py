"""Rows a second and core of each way to write: ours and Beam's own, in one run against the same servers.

`python -m tests.benchmarks.write_methods [--rows N] [--stock-rows N] [--server local|sink] [--profile]`, and
`--json FILE` for the figures. Each contender is a pipeline of its own in a process of its own on Beam's SDK
harness: messages in memory, our extraction, its way to write. Counted is the CPU time of that process alone,
from the second run on: the first has one message, and opens what has to be opened. `local` is the local
BigQuery; `sink` takes insertAll and keeps nothing, so that the elapsed time too is the client's. AppendRows
has a server of its own, which parses and judges each row.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import apache_beam as beam
import google.auth
import objsize
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from google.auth.credentials import AnonymousCredentials

from tests.benchmarks.cpu_parts import CpuParts
from tests.bigquery_servers import PROJECT, local_bigquery
from transforms import bigquery_tables
from transforms.bigquery_rows import SIGNIN_SCHEMA, TableRef
from transforms.bigquery_write import WriteSignins

TABLE = TableRef(PROJECT, "benchmark", "signins")
LETTERS = TableRef(PROJECT, "benchmark", "dead_letters")
STOCK = "STREAMING_INSERTS, stock"  # without what transforms/bigquery_row_sizes.py spares it
METHODS = (STOCK, "STREAMING_INSERTS", "INSERT_ALL", "STORAGE_WRITE")
BUNDLE = 5_000
PARTS = {  # of what is done to a row, with the pieces of `file:function` that tell them
    "encoding": ("bigquery_protobuf.py", "bigquery_insert.py:encode", "bigquery_append.py:encode"),
    "reading the messages": (
        "/transforms/signin_",
        "/transforms/pubsub_message",
        "/transforms/bigquery_rows",
    ),
    "HTTP": ("/requests/", "/urllib3/", "/http/", "/bounded_http", "/bigquery_insert"),
    "gRPC": ("/grpc/", "/bigquery_append", "/proto/"),
    "our batches": ("/transforms/bigquery_", "/transforms/write_"),
    "Beam": ("/apache_beam/",),
}
BODY = (
    b'{"userid":"user-%06d","date":"2024-05-06T07:08:%02d.%06dZ",'
    b'"event_id":"01890a5d-ac96-774b-bcce-%012d","attributes":{"ip":"192.0.2.1"}}'
)
_messages: list[bytes] = []


class SourceFn(beam.DoFn):
    def process(self, _: bytes) -> Iterator[bytes]:
        yield from _messages


def run_method(method: str, rows: int, rest: str, storage: str, parts: CpuParts | None) -> dict[str, float]:
    """Writes the rows in bundles of `BUNDLE`; CPU and elapsed seconds. `parts` looks on."""
    os.environ["BIGQUERY_EMULATOR_HOST"] = rest
    google.auth.default = lambda *_args, **_kwargs: (AnonymousCredentials(), PROJECT)  # for Beam's own
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions(["--project", PROJECT]))
    write = WriteSignins(
        TABLE, method=method.removesuffix(", stock"), emulator_host=rest, storage_emulator_host=storage
    )
    source = pipeline | beam.Impulse() | beam.ParDo(SourceFn()).with_output_types(bytes)
    letters = source | write
    if method == STOCK:
        objsize.default_settings.update(exclude_modules_globals=True)
    _ = letters | beam.Map(lambda letter: sys.exit(f"a row was refused: {letter}"))
    proto = pipeline.to_runner_api(default_environment=pipeline.runner._default_environment)
    figures = {"cpu_seconds": 0.0, "seconds": 0.0}
    bodies = [BODY % (n, n % 60, n, n) for n in range(rows)]
    for begin in range(-BUNDLE, rows, BUNDLE):
        _messages[:] = bodies[:1] if begin < 0 else bodies[begin : begin + BUNDLE]
        if parts and begin >= 0:
            parts.start()
        cpu, now = time.process_time(), time.monotonic()
        pipeline.runner.run_via_runner_api(proto, PipelineOptions(["--project", PROJECT])).wait_until_finish()
        if begin >= 0:
            figures["cpu_seconds"] += time.process_time() - cpu
            figures["seconds"] += time.monotonic() - now
            if parts:
                parts.stop()
    return figures


class SinkHandler(BaseHTTPRequestHandler):
    """Takes every row unseen; knows one table."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        reference = {"projectId": TABLE.project, "datasetId": TABLE.dataset, "tableId": TABLE.table}
        self._answer({"tableReference": reference, "schema": {"fields": SIGNIN_SCHEMA}})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({})

    def _answer(self, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        self.wfile.write(head.encode() + content)


@contextlib.contextmanager
def child(*arguments: str) -> Iterator[str]:
    """A server that says its address on its first line and ends with its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield json.loads(process.stdout.readline())["ready"]
    finally:
        process.kill()
        process.communicate(timeout=10)


def serve_sink() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), SinkHandler)
    print(json.dumps({"ready": f"http://127.0.0.1:{server.server_address[1]}"}), flush=True)
    server.serve_forever()


def show(parts: CpuParts, rows: int) -> None:
    """Prints a line for each part: microseconds a row and its share."""
    total = parts.seconds.total()
    for name, seconds in parts.seconds.most_common():
        print(f"  {name:<26}{1e6 * seconds / rows:>12.2f}{seconds / total:>8.0%}", file=sys.stderr)


def measure(method: str, rows: int, servers: tuple[str, str], *, with_profile: bool) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.write_methods", "--one", method, *servers]
    command += ["--profile"] * with_profile
    done = subprocess.run([*command, "--rows", str(rows)], stdout=subprocess.PIPE, check=True, timeout=600)
    figures = json.loads(done.stdout)
    return {
        "rows": rows,
        "cpu_us_a_row": 1e6 * figures["cpu_seconds"] / rows,
        "rows_a_second_and_core": rows / figures["cpu_seconds"],
        "rows_a_second": rows / figures["seconds"],
    }


def compare(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="signin-benchmark-"))
        if arguments.server == "local":
            rest = stack.enter_context(local_bigquery(Path(directory)))
            with bigquery_tables.client(PROJECT, rest) as client:
                bigquery_tables.ensure_tables(client, TABLE, LETTERS)
        else:
            rest = stack.enter_context(child("tests.benchmarks.write_methods", "--sink"))
        storage = stack.enter_context(child("tests.append_rows_server", str(TABLE)))
        found = {}
        for method in arguments.methods:
            rows = arguments.stock_rows if method.startswith("STREAMING") else arguments.rows
            found[method] = figures = measure(method, rows, (rest, storage), with_profile=arguments.profile)
            rate = figures["rows_a_second_and_core"]
            ratio = rate / found[arguments.methods[0]]["rows_a_second_and_core"]
            numbers = f"{figures['cpu_us_a_row']:>12.1f}{rate:>14,.0f}{figures['rows_a_second']:>12,.0f}"
            print(f"{method:<28}{numbers}{ratio:>8.1f}", flush=True)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--stock-rows", type=int, default=10_000, help="rows of Beam's STREAMING_INSERTS")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=METHODS, help="the first counts as 1"
    )
    parser.add_argument("--server", choices=("local", "sink"), default="local")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument(
        "--profile", action="store_true", help="print where the CPU time goes, which costs some"
    )
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "REST", "STORAGE"), help=argparse.SUPPRESS)
    parser.add_argument("--sink", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.sink:
        serve_sink()
    if arguments.one:
        parts = CpuParts(PARTS) if arguments.profile else None
        print(json.dumps(run_method(arguments.one[0], arguments.rows, *arguments.one[1:], parts)))
        if parts:
            show(parts, arguments.rows)
        return
    print(f"{'':<28}{'CPU us/row':>12}{'rows/s/core':>14}{'rows/s':>12}{'ratio':>8}", flush=True)
    found = compare(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    # What is defined in __main__ is pickled by value, and so would be the messages.
    from tests.benchmarks import write_methods  # noqa: PLW0406 - see above

    write_methods.main()
