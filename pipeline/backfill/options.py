"""What a user may set when launching a backfill."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from typing import NamedTuple

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, StandardOptions

from pipeline.options import OptionsError, SigninOptions, read_command_line

DEFAULT_JOB_NAME = "signin-backfill"
FILES_PATTERN = r"^(gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]|)/.+$"
# What only a job that reads Pub/Sub takes.
_STREAMING_OPTIONS = ("input_subscription", "input_topic", "id_label", "timestamp_attribute")


class BackfillOptions(PipelineOptions):  # type: ignore[misc]
    """The options that only a backfill has; what it does with its messages is said by SigninOptions."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--input_files",
            default="",
            help="Files with one sign-in on each line, plain or gzip, as gs://BUCKET/PATTERN or "
            "/PATH/PATTERN; * stands for a part of a name. On Dataflow only gs:// can be read.",
        )


class Backfill(NamedTuple):
    """One backfill: the glob pattern of its files, and the options of what is done with their lines."""

    files: str
    options: SigninOptions


def parse(argv: list[str] | None) -> Backfill:
    """Reads the command line (None: the process's own). Raises OptionsError."""
    options = read_command_line(argv, DEFAULT_JOB_NAME, streaming=False)
    options.tables()
    files = str(options.view_as(BackfillOptions).input_files)
    if not re.fullmatch(FILES_PATTERN, files):
        raise OptionsError(f"--input_files {files!r} must look like gs://BUCKET/PATTERN or /PATH/PATTERN.")
    on_dataflow = options.view_as(StandardOptions).runner == "DataflowRunner"
    if on_dataflow and not files.startswith("gs://"):
        raise OptionsError(f"--input_files {files}: the workers of Dataflow have no such files. Take gs://.")
    if options.view_as(GoogleCloudOptions).update:
        raise OptionsError("A backfill is a batch job, which Dataflow cannot update.")
    defaults = SigninOptions([])
    for name in _STREAMING_OPTIONS:
        if getattr(options, name) != getattr(defaults, name):
            raise OptionsError(f"--{name} is for jobs that read Pub/Sub; a backfill reads --input_files.")
    return Backfill(files, options)
