"""The pipeline: sign-ins from Pub/Sub to BigQuery, what cannot become a row to the dead letters.

`python -m pipeline.user_signin --help` lists the options. `--runner` is LocalRunner (the default: the
engine of this package), DirectRunner (Beam's own) or DataflowRunner (Google's service; it only submits).
"""

from __future__ import annotations

# Nothing of Beam is imported up here: that takes 2 s, in which a SIGTERM must already be heard, and as a
# script (a Flex Template names this file) the packages are not importable yet.
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.options import SigninOptions


def build(pipeline: Any, options: SigninOptions, source: Any = None, bigquery_emulator: str = "") -> None:
    """Applies the graph to `pipeline`; `source` stands in for the read step of Dataflow.

    `bigquery_emulator` is a URL; empty means Google.
    """
    from pipeline.graph import write_messages

    messages = pipeline | "Read messages from Pub/Sub" >> (source or _pubsub_source(options))
    write_messages(messages, options, bigquery_emulator)


def _pubsub_source(options: SigninOptions) -> Any:
    from pipeline.pubsub_source import ReadMessages

    topic, subscription = options.source()
    return ReadMessages(
        topic=topic or None,
        subscription=subscription or None,
        id_label=options.deduplicating_attribute(),
        timestamp_attribute=options.timestamp_attribute or None,
    )


def run(argv: Sequence[str] | None = None) -> int:
    """Runs or submits the job; returns the exit code: 0 done, 1 failed, 2 not startable as asked."""
    from pipeline.runners import start

    return start(sys.argv[1:] if argv is None else list(argv))


if __name__ == "__main__":
    if not __package__:
        sys.path[0] = str(Path(__file__).resolve().parents[1])
    # What is defined in __main__ is pickled by value, so the module is imported under its own name.
    from pipeline.user_signin import run as run_imported

    sys.exit(run_imported())
