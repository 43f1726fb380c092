"""Our own write step under the stock DirectRunner: ReadFromPubSub, then what our job does with messages.

Usage: python -m tests.benchmarks.direct_job PROJECT SUBSCRIPTION TABLE, with the emulators' variables set.
"""

from __future__ import annotations

import os
import sys

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from transforms.bigquery_rows import parse_table
from transforms.bigquery_write import WriteDeadLetters, WriteSignins


def main() -> None:
    project, subscription, table = sys.argv[1:]
    emulator = os.environ["BIGQUERY_EMULATOR_HOST"]
    rows, letters = parse_table(table, project), parse_table(f"{table}_dead_letters", project)
    options = PipelineOptions(["--project", project])
    options.view_as(StandardOptions).streaming = True
    with beam.Pipeline(runner="DirectRunner", options=options) as pipeline:
        (
            pipeline
            | "Read" >> beam.io.ReadFromPubSub(subscription=subscription, with_attributes=True)
            | "Write sign-ins" >> WriteSignins(rows, emulator_host=emulator)
            | "Write dead letters" >> WriteDeadLetters(letters, emulator_host=emulator)
        )


if __name__ == "__main__":
    main()
