"""The `signin` command. Only this package starts the local stack."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer
from rich.markup import escape

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
from service.cli.terminal import abandon_output, err, sentence_of

log = logging.getLogger(__name__)

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
    try:
        try:
            app()
        finally:
            if sys.stdout:  # None where it was closed before the start
                sys.stdout.flush()
    except OSError as error:  # of a full disk under the output, and of whatever nobody below has told
        log.debug("the command ended with an error of the operating system", exc_info=error)
        abandon_output()
        if not isinstance(error, BrokenPipeError):
            err.print(f"[bold red]error:[/] {escape(sentence_of(error))}", soft_wrap=True)
        raise SystemExit(1) from None
