"""The textbook pair, as any tutorial has it: ReadFromPubSub and WriteToBigQuery on the DirectRunner.

Usage: python -m tests.benchmarks.textbook_job PROJECT SUBSCRIPTION TABLE, with the emulators' variables set.
"""

from __future__ import annotations

import json
import sys

import apache_beam as beam
import google.auth
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from google.auth.credentials import AnonymousCredentials


def main() -> None:
    project, subscription, table = sys.argv[1:]
    # Stock Beam asks for credentials even for an emulator.
    google.auth.default = lambda *_args, **_kwargs: (AnonymousCredentials(), project)
    options = PipelineOptions(["--project", project])
    options.view_as(StandardOptions).streaming = True
    with beam.Pipeline(runner="DirectRunner", options=options) as pipeline:
        (
            pipeline
            | "Read" >> beam.io.ReadFromPubSub(subscription=subscription)
            | "Decode" >> beam.Map(lambda data: data.decode("utf-8"))
            | "Parse" >> beam.Map(json.loads)
            | "Keep the two columns"
            >> beam.Map(lambda event: {"userid": event["userid"], "date": event["date"]})
            | "Write"
            >> beam.io.WriteToBigQuery(
                table,
                schema="userid:STRING,date:TIMESTAMP",
                method=beam.io.WriteToBigQuery.Method.STREAMING_INSERTS,
                create_disposition=beam.io.BigQueryDisposition.CREATE_NEVER,
                write_disposition=beam.io.BigQueryDisposition.WRITE_APPEND,
            )
        )


if __name__ == "__main__":
    main()
