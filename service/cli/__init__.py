"""The `signin` command. Only this package starts the local stack."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli import (
    config,
    dead_letters,
    demo,
    emit,
    faults,
    jobs,
    keys,
    loadtest,
    outbox,
    rows,
    run,
    tail,
    template,
)

app = typer.Typer(
    name="signin",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback is for the log; expected errors are sentences
    help="A streaming sign-in pipeline: HTTP to Pub/Sub to Apache Beam to BigQuery.",
)


def show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("signin-pipeline"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version")
    ] = False,
) -> None:
    """A streaming sign-in pipeline: HTTP to Pub/Sub to Apache Beam to BigQuery."""


local = typer.Typer(invoke_without_command=True, help="The local stack alone, and its fault switches.")
local.callback()(run.local)
local.command("faults")(faults.faults)

app.command()(demo.demo)
app.command()(run.up)
app.command()(run.serve)
app.add_typer(local, name="local")
app.command()(emit.emit)
app.command()(loadtest.loadtest)
app.command()(rows.rows)
app.command()(tail.tail)
app.add_typer(jobs.app, name="jobs")
app.add_typer(outbox.app, name="outbox")
app.add_typer(template.app, name="template")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(keys.app, name="keys")
app.add_typer(config.app, name="config")
app.command()(run.migrate)


def main() -> None:
    """The console script."""
    app()
