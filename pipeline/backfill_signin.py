"""The backfill: sign-ins from files to BigQuery, through the same transforms as those from Pub/Sub.

`python -m pipeline.backfill_signin --help` lists the options. `--runner` is LocalRunner (the default: the
engine of this package) or DataflowRunner (Google's service; it only submits).
"""

from __future__ import annotations

# As in user_signin: nothing of Beam up here.
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.backfill.options import Backfill


def build(pipeline: Any, backfill: Backfill, source: Any = None, bigquery_emulator: str = "") -> None:
    """Applies the graph to `pipeline`; `source` stands in for the read step of Dataflow.

    `bigquery_emulator` is a URL; empty means Google.
    """
    from pipeline.backfill.source import MESSAGES, ReadFiles
    from pipeline.graph import write_messages
    from transforms.pubsub_message import DEAD_LETTERS

    options = backfill.options
    lines = pipeline | "Read lines of files" >> (source or ReadFiles(backfill.files, options.origin()))
    write_messages(lines[MESSAGES], options, bigquery_emulator, further_dead_letters=(lines[DEAD_LETTERS],))


def run(argv: Sequence[str] | None = None) -> int:
    """Runs or submits the job; returns the exit code: 0 done, 1 failed, 2 not startable as asked."""
    from pipeline.backfill.runner import start

    return start(sys.argv[1:] if argv is None else list(argv))


if __name__ == "__main__":
    if not __package__:
        sys.path[0] = str(Path(__file__).resolve().parents[1])
    # What is defined in __main__ is pickled by value, so the module is imported under its own name.
    from pipeline.backfill_signin import run as run_imported

    sys.exit(run_imported())
