"""Where a backfill runs: on this machine, or on Dataflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import credentials
from pipeline.runners import StartError, ensure_tables, guarded, quieten_beam, submit

if TYPE_CHECKING:
    from pipeline.backfill.options import Backfill
    from pipeline.local_engine.signals import Signals


def start(arguments: list[str]) -> int:
    """Runs or submits the backfill that the arguments describe; returns the exit code."""
    return guarded(_dispatch, arguments)


def _dispatch(arguments: list[str], signals: Signals) -> int:
    from apache_beam.options.pipeline_options import StandardOptions, TestOptions

    from pipeline.backfill.options import parse
    from pipeline.backfill_signin import build
    from pipeline.options import OptionsError

    backfill = parse(arguments)
    runner = backfill.options.view_as(StandardOptions).runner or "LocalRunner"
    if runner == "LocalRunner":
        return _run_locally(backfill, signals)
    signals.close()
    if runner == "DataflowRunner":
        if not backfill.options.view_as(TestOptions).dry_run:
            credentials.application_default()
            _find(backfill.files)
        return submit(backfill.options, lambda pipeline: build(pipeline, backfill))
    raise OptionsError(f"--runner {runner} is none of LocalRunner, DataflowRunner.")


def _run_locally(backfill: Backfill, signals: Signals) -> int:
    from pipeline.backfill.session import BackfillSession
    from pipeline.backfill.source import ReadLeasedLines
    from pipeline.backfill_signin import build
    from pipeline.local_engine.runs import GraphRuns

    quieten_beam()
    emulator = credentials.bigquery_emulator()
    if not emulator or backfill.files.startswith("gs://"):
        credentials.application_default()
    files = _find(backfill.files)
    ensure_tables(backfill.options, emulator)
    source = ReadLeasedLines(backfill.options.origin())
    runs = GraphRuns(lambda pipeline: build(pipeline, backfill, source, emulator), backfill.options)
    return BackfillSession(runs, signals).run(files)


def _find(pattern: str) -> list[tuple[str, int]]:
    """The files of the pattern. Raises StartError where there are none, or they cannot be looked for."""
    from apache_beam.io.filesystem import BeamIOError

    from pipeline.backfill.lines import find_files

    try:
        files = find_files(pattern)
    except BeamIOError as error:
        raise StartError(f"{pattern} cannot be looked for: {error}") from error
    if not files:
        raise StartError(f"No file is named {pattern}.")
    return files
