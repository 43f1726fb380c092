"""What the commands print with: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from service.config import Settings, load
from service.errors import ConfigError, ProblemError
from service.local.process import ServerError
from service.local.stack import StackError

# A program that reads a table wants a line for each row; people choose the width of theirs, or COLUMNS.
_PIPED_WIDTH = None if (sys.stdout and sys.stdout.isatty()) or os.environ.get("COLUMNS") else 1000
out = Console(width=_PIPED_WIDTH)
err = Console(stderr=True)

WIDE = 100  # columns of a terminal, from which on a table is one, whatever it holds
FEW_COLUMNS = 3  # which fit by breaking the longest
_UNBOUNDED = 10_000
_FRACTION = re.compile(r"\A(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)\.\d+")

STATE_STYLES = {
    "RUNNING": "green",
    "DRAINED": "cyan",
    "DONE": "cyan",
    "UPDATED": "cyan",
    "CANCELLED": "yellow",
    "FAILED": "bold red",
    "REJECTED": "bold red",
    "LOST": "bold red",
}


def fail(message: str, *, exit_code: int = 1) -> NoReturn:
    """Ends the command with a one-sentence cause on standard error."""
    err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(exit_code)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turns an error of the settings or of a local server into its sentence, without a traceback."""
    try:
        yield
    except ConfigError as error:
        fail(str(error), exit_code=2)
    except (StackError, ServerError) as error:
        fail(str(error))


@contextmanager
def told_as_sentences() -> Iterator[None]:
    """Turns what the settings, a local server or the database complain about into one sentence."""
    with clear_errors():
        try:
            yield
        except ProblemError as error:
            fail(error.detail)


def sentence_of(error: OSError) -> str:
    """What the operating system complains about, and of which file where it is one."""
    why = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {why}" if error.filename else why


def abandon_output() -> None:
    """Lets go of a standard output that takes nothing more: else the end of the program complains again."""
    with suppress(OSError, ValueError):  # a test's output has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def command(words: str) -> str:
    """A `signin` command as this person types it: behind `uv run` where that started us."""
    return f"uv run signin {words}" if os.environ.get("UV") else f"signin {words}"


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Reads the settings; what is wrong with them ends the command, a line for each variable."""
    try:
        return load(overrides)
    except ConfigError as error:
        fail(str(error), exit_code=2)


def table_of(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> RenderableType:
    """A Rich table of plain values; a missing value is an empty cell.

    Where a table of many columns would break them into slivers, it is a block for each row instead.
    """
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for column in columns:
        # What people copy stays in one piece.
        table.add_column(column, overflow="fold", no_wrap=column in ("id", "event_id"))
    for row in rows:
        table.add_row(*(cell(value) for value in row))
    if out.width >= WIDE or len(columns) <= FEW_COLUMNS:
        return table
    natural = Measurement.get(out, out.options.update_width(_UNBOUNDED), table).maximum
    return table if natural <= out.width else _blocks(title, columns, rows)


def _blocks(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> RenderableType:
    """A line for each value that is there, and times to the second."""
    texts = [f"[bold]{escape(title)}[/]"]
    for row in rows:
        shown = zip(columns, (_FRACTION.sub(r"\1", cell(value)) for value in row), strict=True)
        texts.append("\n".join(f"[dim]{name}:[/] {value}" for name, value in shown if value))
    return Text.from_markup("\n\n".join(texts), overflow="fold")


def cell(value: object) -> str:
    """A value as a table shows it: times in UTC to the millisecond, nothing for NULL."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    return "" if value is None else escape(str(value))


def styled_state(state: str) -> str:
    """A job's state in its colour."""
    style = STATE_STYLES.get(state)
    return f"[{style}]{state}[/]" if style else state
