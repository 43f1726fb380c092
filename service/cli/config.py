"""`signin config`: which settings are in force and why, and whether all that they name answers."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.client import running_overrides
from service.cli.terminal import clear_errors, err, out, table_of
from service.config import Settings, masked, sources, variable_name
from service.config.variables import is_secret

if TYPE_CHECKING:
    from service.checkup import Finding

app = typer.Typer(no_args_is_help=True, help="The settings, and whether what they name answers.")

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}
_STACK = "the local stack that runs here"

Json = Annotated[bool, typer.Option("--json", help="Print JSON")]


@app.command()
def show(as_json: Json = False) -> None:
    """Show every setting in force and where it comes from; secrets are masked."""
    with clear_errors():
        read = sources.read()
        overrides = running_overrides()
        settings = sources.combine(read, overrides)
    rows = [
        {
            "variable": variable_name(name),
            "value": shown(settings, name),
            "origin": _STACK if name in overrides and read.origin(name) == "default" else read.origin(name),
        }
        for name in Settings.model_fields
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    cells = [[row["variable"], text(row["value"]), row["origin"]] for row in rows]
    out.print(table_of("", ["variable", "value", "origin"], cells))


@app.command()
def check(
    as_json: Json = False,
    deadline: Annotated[
        float, typer.Option(min=0.1, max=600, help="Seconds that each check may take")
    ] = 10.0,
) -> None:
    """Try each connection, and say what is wrong and how to mend it. Ends with 1 where one does not work."""
    from service.checkup import check as check_all

    # The findings say it better than the warnings of those who were asked.
    logging.getLogger().addHandler(logging.NullHandler())
    with clear_errors():
        settings = sources.combine(sources.read(), running_overrides())
        with err.status("trying each connection"):
            findings = asyncio.run(check_all(settings, deadline))
    failed = sum(finding.status == "failed" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": not failed, "checks": [asdict(each) for each in findings]}, indent=2))
    else:
        print_findings(findings)
    if failed:
        raise typer.Exit(1)


def print_findings(findings: Sequence[Finding]) -> None:
    """A line for each, and below it what to do where something is not as it should be."""
    width = max(len(finding.check) for finding in findings)
    for each in findings:
        out.print(
            f"[{_STYLES[each.status]}]{each.status:8}[/]{each.check:{width}}  ", end="", highlight=False
        )
        out.print(f"{each.target}  [{each.seconds:.2f} s]", markup=False, highlight=False, soft_wrap=True)
        indent = " " * 8
        if each.detail:
            out.print(indent + each.detail, markup=False, highlight=False, soft_wrap=True)
        for remedy in each.remedies:
            out.print(f"{indent}→ {remedy}", markup=False, highlight=False, soft_wrap=True)


def shown(settings: Settings, name: str) -> Any:
    """The value as JSON has it, masked where it is a secret."""
    value = settings.model_dump(mode="json", include={name})[name]
    return masked(str(value)) if is_secret(Settings.model_fields[name]) else value


def text(value: Any) -> str:
    """The value as its variable would be written."""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, dict | list) else "" if value is None else str(value)
