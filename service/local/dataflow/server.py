"""The local Dataflow server, in this process or as one of its own."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc.aio

from service.local.dataflow.api import DataflowApi
from service.local.dataflow.faults import DataflowFaultSwitch
from service.local.dataflow.fleet import Fleet, Limits
from service.local.dataflow.job import LocalJob
from service.local.dataflow.lags import Lags
from service.local.dataflow.store import DataDirInUseError, JobStore
from service.local.grpc_server import STOP_GRACE_SECONDS, announce, start_server, until_signal
from service.local.supervisor import Command
from service.local.templates import Template, Templates


class DataflowServer:
    """Serves Dataflow at `address` from `__aenter__` to `__aexit__`, and runs the jobs meanwhile.

    Jobs get this process's environment with `environment` over it, DATAFLOW_EMULATOR_HOST and
    SIGNIN_JOB_ID, without Google credentials. `templates` adds to those of the pipeline package.
    Raises DataDirInUseError where another process serves `data_dir`, and OSError where the port is taken.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        environment: Mapping[str, str] | None = None,
        templates: Mapping[str, Template] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: Limits | None = None,
    ) -> None:
        self.address = ""
        self.faults = DataflowFaultSwitch()
        self._host = host
        self._port = port
        self._environment = dict(environment or {})
        self._templates = Templates(templates)
        self._directory = data_dir.absolute() / "workers"
        self._store = JobStore(data_dir.absolute())
        self._fleet = Fleet(self._store, self._command, limits or Limits())
        self._lags = Lags((os.environ | self._environment).get("SIGNIN_MONITORING_ENDPOINT", ""))
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Self:
        self._store.open()
        try:
            self._directory.mkdir(exist_ok=True)
            api = DataflowApi(self._fleet, self._templates, self.faults, self._lags)
            handlers = [*api.handlers(), self.faults.handler()]
            self._server, self.address = await start_server(handlers, self._host, self._port)
            self._fleet.resume()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stops serving, ends the workers softly, and gives the data directory free."""
        try:
            self.faults.close()
            if self._server:
                await self._server.stop(STOP_GRACE_SECONDS)
            await self._lags.close()
            await self._fleet.close()
        finally:
            self._store.close()

    def _command(self, job: LocalJob) -> Command:
        template = self._templates.find(job.launch.container_spec_gcs_path)
        flags = {"project": job.proto.project_id, "region": job.proto.location, "job_name": job.proto.name}
        flags |= dict(job.launch.parameters)
        environment = {**os.environ, **self._environment}
        environment.pop("GOOGLE_APPLICATION_CREDENTIALS", None)
        environment.pop("OTEL_SERVICE_NAME", None)  # the job is a service of its own
        environment["DATAFLOW_EMULATOR_HOST"] = self.address
        environment["SIGNIN_JOB_ID"] = job.id
        arguments = tuple(f"--{name}={value}" for name, value in flags.items())
        return Command(template.module, arguments, environment, self._directory)


async def serve(server: DataflowServer) -> None:
    """Serves until SIGTERM or SIGINT."""
    async with server:
        announce(server.address)
        await until_signal()


def main() -> None:
    """The command line; an unusable data directory or port ends it with a sentence."""
    parser = argparse.ArgumentParser(prog="service.local.dataflow", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument(
        "--template",
        action="append",
        default=[],
        metavar="GS_PATH=MODULE[=METADATA]",
        help="one more template: its path, the module that it runs, its metadata file",
    )
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=logging.INFO)
    templates = dict(_read_template(text) for text in options.template)
    server = DataflowServer(options.data_dir, templates=templates, host=options.host, port=options.port)
    try:
        asyncio.run(serve(server))
    except (DataDirInUseError, OSError) as error:
        raise SystemExit(str(error)) from error


def _read_template(text: str) -> tuple[str, Template]:
    path, _, rest = text.partition("=")
    module, _, metadata = rest.partition("=")
    if not module:
        raise SystemExit(f"--template {text}: GS_PATH=MODULE is needed")
    return path, Template(module, Path(metadata).absolute() if metadata else None)
