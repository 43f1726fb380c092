"""`signin up`, `serve`, `local` and `migrate`: the commands that run something until told to stop."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from service.cli.platform import (
    BIGQUERY_PORT,
    DATAFLOW_PORT,
    PUBSUB_PORT,
    Platform,
    print_environment,
    until_interrupted,
)
from service.cli.terminal import clear_errors, command, err, fail, load_settings, out
from service.config import Settings
from service.errors import ConfigError, DatabaseUnavailableError
from service.local.stack import Stack

PubsubPort = Annotated[int, typer.Option(min=0, max=65535, help="Port of Pub/Sub; 0 takes a free one")]
DataflowPort = Annotated[int, typer.Option(min=0, max=65535, help="Port of Dataflow; 0 takes a free one")]
BigqueryPort = Annotated[int, typer.Option(min=0, max=65535, help="Port of BigQuery; 0 takes a free one")]

MonitoringPort = Annotated[int, typer.Option(min=0, max=65535, help="Port of Monitoring; 0 takes a free one")]


def up(
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the service")] = None,
    pubsub_port: PubsubPort = PUBSUB_PORT,
    dataflow_port: DataflowPort = DATAFLOW_PORT,
    bigquery_port: BigqueryPort = BIGQUERY_PORT,
) -> None:
    """Start the local stack and the service, until Ctrl-C. Needs no cloud account."""
    with clear_errors():
        settings = load_settings({"port": port})
        platform = Platform(
            settings, pubsub_port=pubsub_port, dataflow_port=dataflow_port, bigquery_port=bigquery_port
        )
        asyncio.run(run_up(platform))


async def run_up(platform: Platform) -> None:
    with err.status("starting Pub/Sub, BigQuery, Dataflow and the service"):
        await platform.start()
    try:
        platform.print_addresses()
        steps = "".join(f"\n  {command(step)}" for step in ("jobs launch", "emit", "rows"))
        out.print(f"\nNext, in another terminal:{steps}", highlight=False)
        await until_interrupted(platform)
    finally:
        with err.status("stopping"):
            await platform.stop()


def serve(
    announce: Annotated[bool, typer.Option("--announce", hidden=True)] = False,
    host: Annotated[str | None, typer.Option(help="Address to listen on")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that answer on the port")] = 1,
    migrate_first: Annotated[
        bool, typer.Option("--migrate", help="Bring the database to the newest schema before the start")
    ] = False,
    debug_log: Annotated[Path | None, typer.Option(help="File that gets every log record besides")] = None,
) -> None:
    """Run the service alone, against Google Cloud or the emulators that the environment names."""
    from service.logs import configure
    from service.start_rules import require_startable

    with clear_errors():
        settings = load_settings({"host": host, "port": port, "debug_log": debug_log})
        require_startable(settings)
        configure(settings)
        if migrate_first:
            migrated(settings)
        run_server(settings, announce=announce, processes=workers)


def run_server(settings: Settings, *, announce: bool, processes: int = 1) -> None:
    """Serves until a signal comes. Raises ConfigError where the port is taken or credentials are missing."""
    from service import server, tracing, workers
    from service.app import create_app
    from service.health import installed_version

    if settings.uses_google_cloud:
        asyncio.run(find_credentials(settings))
    if not settings.database_url:
        migrated(settings)  # the embedded default is nobody else's to migrate
    try:
        listener = server.listen_on(settings.host, settings.port)
    except OSError as error:
        raise ConfigError(
            f"{settings.host}:{settings.port} cannot be listened on ({error.strerror}). "
            "Is the service running already? Choose another port with --port or SIGNIN_PORT."
        ) from error
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def started() -> None:
        if announce:
            print(json.dumps({"ready": url}), flush=True)  # noqa: T201 - the parent reads this line
        else:
            out.print(f"The service answers at {url}, its documentation at {url}/docs", highlight=False)

    if processes > 1:
        workers.run(settings, listener, processes, started)
    else:
        traces = tracing.from_environment(settings, installed_version())
        server.run(create_app(settings, traces=traces), listener, started)


async def find_credentials(settings: Settings) -> None:
    """Raises MissingCredentialsError, whose message names the commands that make credentials."""
    from service.clients import Clients

    clients = Clients(settings)
    try:
        await clients.credentials()
    finally:
        await clients.close()


def migrate(
    wait: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds to wait for others who migrate, and for tables in use; 120"),
    ] = None,
) -> None:
    """Bring the metadata database to the newest schema; any number at once apply it once."""
    from service.db import new_file

    with clear_errors():
        settings = load_settings()
        made = new_file(settings)
        if applied := migrated(settings, wait):
            out.print(f"Applied {', '.join(applied)}.", highlight=False)
        if made:  # which whoever mistyped a path must see
            out.print(f"There was no database at {made}: it is a new one.", highlight=False, soft_wrap=True)
        out.print("The database is at the newest schema.")


def migrated(settings: Settings, wait_seconds: float | None = None) -> list[str]:
    """Migrates and returns the revisions that were applied; a failure ends the command with its sentence."""
    from service.db.migrations import WAIT_SECONDS, SchemaBusyError
    from service.db.migrations import migrate as migrate_database

    try:
        return migrate_database(settings, wait_seconds=WAIT_SECONDS if wait_seconds is None else wait_seconds)
    except SchemaBusyError as error:
        fail(error.detail)
    except DatabaseUnavailableError as error:
        fail(f"{error.detail} Is SIGNIN_DATABASE_URL right?" if settings.database_url else error.detail)


def local(
    context: typer.Context,
    pubsub_port: PubsubPort = PUBSUB_PORT,
    dataflow_port: DataflowPort = DATAFLOW_PORT,
    bigquery_port: BigqueryPort = BIGQUERY_PORT,
    monitoring_port: MonitoringPort = 0,
) -> None:
    """Start the local stack alone: Pub/Sub, Dataflow and BigQuery, for any Google client."""
    if context.invoked_subcommand:
        return
    with clear_errors():
        stack = Stack(
            load_settings(),
            pubsub_port=pubsub_port,
            dataflow_port=dataflow_port,
            bigquery_port=bigquery_port,
            monitoring_port=monitoring_port,
        )
        asyncio.run(run_stack(stack))


async def run_stack(stack: Stack) -> None:
    with err.status("starting Pub/Sub, BigQuery and Dataflow"):
        await stack.start()
    try:
        print_environment(stack.environment)
        await until_interrupted(stack)
    finally:
        with err.status("stopping"):
            await stack.stop()
