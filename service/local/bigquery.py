"""The local BigQuery: `bqemulator` over DuckDB, in a process of its own, with its data on disk.

`python -m service.local.lifeline service.local.bigquery --host 127.0.0.1 --port 0 --data-dir DIR`.
The first line on standard output is `{"ready": "http://127.0.0.1:PORT"}` and nothing else follows;
the logs go to standard error. It takes nearly everything for valid: never let it judge a row.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib.metadata
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from service.config import LOCAL_PROJECT, is_loopback
from service.local.grpc_server import announce
from service.local.http_faults import FaultMiddleware

STOP_SECONDS = 5.0
_log = logging.getLogger("service.local.bigquery")


class StartError(Exception):
    """The server cannot start; the message is one line for a person."""


class _NoGrpcServer:
    """Stands where bqemulator expects the server of the Storage APIs."""

    async def start(self) -> None:
        """Starts nothing."""

    async def stop(self, *, grace: float) -> None:
        """Stops nothing."""


def _patched(owner: Any, name: str, replacement: Any) -> None:
    """Replaces a part of bqemulator. Raises StartError where there is no such part."""
    if not callable(getattr(owner, name, None)):
        version = importlib.metadata.version("bqemulator")
        raise StartError(
            f"bqemulator {version} has no {getattr(owner, '__name__', owner)}.{name}, which this server "
            "replaces. Install the version that pyproject.toml names."
        )
    setattr(owner, name, replacement)


def _adapt() -> Any:
    """Imports bqemulator and replaces what does not serve here; returns its module `server`."""
    from bqemulator.config import LogFormat, LogLevel
    from bqemulator.observability.logging_ import configure_logging

    configure_logging(level=LogLevel.WARNING, fmt=LogFormat.JSON)  # it logs while it is imported
    from bqemulator import server
    from bqemulator.storage.engine import DuckDBEngine
    from bqemulator.versioning.snapshots import SnapshotManager

    from service.local.bigquery_inserts import BulkInserts

    create_app = server.create_app
    capture = getattr(SnapshotManager, "capture", None)

    def capture_on_request(manager: Any, *names: str, kind: str = "AUTO") -> Any:
        # Each AUTO capture copies the whole table: 400 thousand rows in chunks took 3.4 GB.
        return None if kind == "AUTO" or capture is None else capture(manager, *names, kind=kind)

    def stay_offline(engine: Any) -> None:
        # The extension `spatial` would be fetched from the network. Only GEOGRAPHY needs it.
        engine.connection.execute("SET autoinstall_known_extensions = false")
        engine.connection.execute("SET autoload_known_extensions = false")

    _patched(SnapshotManager, "capture", capture_on_request)
    _patched(DuckDBEngine, "_load_spatial", stay_offline)
    _patched(server, "create_app", lambda context: FaultMiddleware(BulkInserts(create_app(context), context)))
    _keep_to_one_thread(server)
    _convert_rows_at_once()
    return server


def _keep_to_one_thread(server: Any) -> None:
    """Leaves the event loop's thread as the only one that touches DuckDB.

    There is one connection. A plain route (list rows, readyz) or a Storage API call runs in a thread
    besides, and beside an insert each waits for what the other holds, connection and GIL, for ever.
    """
    import fastapi.routing

    async def call(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    _patched(fastapi.routing, "run_in_threadpool", call)
    _patched(server, "build_grpc_server", lambda _: (_NoGrpcServer(), 0))


def _convert_rows_at_once() -> None:
    """Tries all rows of an insert with `skipInvalidRows` in one go, before one by one: 3 times faster."""
    from bqemulator.api.routes import tabledata

    one_by_one = getattr(tabledata, "_partition_rows_for_insert", None)

    def partition(rows: list[Any], schema: Any) -> Any:
        try:
            tabledata.bq_rows_to_arrow(rows, schema)
        except (ValueError, TypeError):
            return one_by_one(rows, schema) if one_by_one else None
        return rows, []

    _patched(tabledata, "_partition_rows_for_insert", partition)


def _settings(host: str, port: int, data_dir: Path, project: str) -> Any:
    from bqemulator.config import LogFormat, LogLevel, PersistenceMode, Settings

    return Settings(
        rest_host=host,
        rest_port=port,
        grpc_host=host,
        grpc_port=0,
        persistence_mode=PersistenceMode.PERSISTENT,
        data_dir=data_dir,
        default_project_id=project,
        upload_staging_dir=data_dir / "uploads",
        gcs_local_root=data_dir / "gcs",
        enable_format_extensions=False,  # would be fetched from the network
        log_level=LogLevel.WARNING,
        log_format=LogFormat.JSON,
        tracing_enabled=False,
        otlp_endpoint=None,
        admin_enabled=False,
    )


def _require_free(host: str, port: int) -> None:
    """Raises StartError where the port is taken: uvicorn would end the process from inside a task."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartError(
                f"{host}:{port} cannot be listened on ({error.strerror}): is another program using it?"
            ) from error


async def serve(host: str, port: int, data_dir: Path, project: str, ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT; calls `ready` with the URL once requests are answered.

    Raises StartError where the port or the data directory is taken.
    """
    _require_free(host, port)
    module = _adapt()
    import duckdb

    (data_dir / "gcs").mkdir(parents=True, exist_ok=True)
    server = module.EmulatorServer(_settings(host, port, data_dir, project))
    try:
        await server.start()
    except duckdb.Error as error:
        raise StartError(f"{data_dir} cannot be opened: {' '.join(str(error).split())}") from error
    rest = getattr(server, "_fastapi_task", None)
    if rest is None:
        raise StartError("bqemulator has no EmulatorServer._fastapi_task, which this server watches.")
    try:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        gc.freeze()  # a full collection over all that is imported is a pause of 0.1 s
        ready(server.rest_url)
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait({stopping, rest}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            raise StartError("the REST server ended unasked")
    finally:
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await server.stop()
        except TimeoutError:
            _log.warning("requests did not end in %g s; what was acknowledged is on disk", STOP_SECONDS)


@contextlib.contextmanager
def _private_stdout() -> Iterator[IO[str]]:
    """Sends all that anybody prints to standard error; yields the real standard output."""
    with os.fdopen(os.dup(1), "w") as stdout:
        os.dup2(2, 1)
        yield stdout


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m service.local.bigquery", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="loopback address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port of the REST API; 0 takes a free one")
    parser.add_argument("--data-dir", type=Path, required=True, help="directory of the DuckDB file")
    parser.add_argument("--project", default=LOCAL_PROJECT, help="project of requests that name none")
    arguments = parser.parse_args()
    if not is_loopback(arguments.host):
        parser.error(f"--host {arguments.host} is not a loopback address")

    with _private_stdout() as stdout:

        def ready(url: str) -> None:
            with contextlib.redirect_stdout(stdout):
                announce(url)

        try:
            asyncio.run(serve(arguments.host, arguments.port, arguments.data_dir, arguments.project, ready))
        except StartError as error:
            sys.exit(f"The local BigQuery did not start: {error}")


if __name__ == "__main__":
    main()
