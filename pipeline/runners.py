"""Where the graph runs: on this machine, on Beam's DirectRunner, or on Dataflow."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline import credentials
from pipeline.local_engine.signals import CANCELLED_EXIT_CODE, Signals
from transforms import write_traces

if TYPE_CHECKING:
    from pipeline.options import SigninOptions

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
DATAFLOW_CALL_SECONDS = 30.0

_log = logging.getLogger(__name__)


class StartError(Exception):
    """A job that cannot begin: none to update, or tables that cannot be made."""


def start(arguments: list[str]) -> int:
    """Runs or submits the streaming job that the arguments describe; returns the exit code."""
    return guarded(_dispatch, arguments)


def guarded(dispatch: Callable[[list[str], Signals], int], arguments: list[str]) -> int:
    """Sets up logs and signals for a job; an error that its starter can mend becomes a sentence and 2."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=LOG_FORMAT)
    logging.getLogger("apache_beam.typehints").setLevel(logging.WARNING)  # it tells of each annotation
    signals = Signals()  # before Beam is imported: a drain may come while that takes its time
    try:
        from pipeline.local_engine.runs import UnsupportedGraphError
        from pipeline.options import OptionsError

        try:
            return dispatch(arguments, signals)
        except (
            OptionsError,
            UnsupportedGraphError,
            StartError,
            credentials.CredentialsError,
        ) as error:
            _log.error("%s", error)
            return 2
    finally:
        signals.close()
        write_traces.close()


def quieten_beam() -> None:
    """Beam's worker logs each failing bundle with its traceback; the local engine tells the same once."""
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    for name in ("apache_beam.runners.worker", "apache_beam.runners.common"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _dispatch(arguments: list[str], signals: Signals) -> int:
    from apache_beam.options.pipeline_options import StandardOptions

    from pipeline.options import OptionsError, parse
    from pipeline.user_signin import build

    options = parse(arguments)
    runner = options.view_as(StandardOptions).runner or "LocalRunner"
    if runner == "LocalRunner":
        return _run_locally(options, signals)
    signals.close()
    if runner == "DirectRunner":
        return _run_directly(options)
    if runner == "DataflowRunner":
        return submit(options, lambda pipeline: build(pipeline, options))
    raise OptionsError(f"--runner {runner} is none of LocalRunner, DirectRunner, DataflowRunner.")


def _run_locally(options: SigninOptions, signals: Signals) -> int:
    from pipeline.local_engine.batch_source import ReadLeasedMessages
    from pipeline.local_engine.session import Session
    from pipeline.user_signin import build

    quieten_beam()
    credentials.require_for_emulated()
    emulator = credentials.bigquery_emulator()
    ensure_tables(options, emulator)
    source = ReadLeasedMessages(options.timestamp_attribute)
    return Session(options, lambda pipeline: build(pipeline, options, source, emulator), signals).run()


def _run_directly(options: SigninOptions) -> int:
    import apache_beam as beam
    from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner

    from pipeline.user_signin import build

    credentials.require_for_emulated()
    emulator = credentials.bigquery_emulator()
    ensure_tables(options, emulator)
    options.id_label = "none"  # which this runner refuses
    # By its usual name it would first download another runner, which cannot read Pub/Sub.
    pipeline = beam.Pipeline(runner=BundleBasedDirectRunner(), options=options)
    build(pipeline, options, bigquery_emulator=emulator)
    try:
        pipeline.run().wait_until_finish()
    except KeyboardInterrupt:  # the only end that this runner has
        return CANCELLED_EXIT_CODE
    return 0


def submit(options: SigninOptions, build: Callable[[Any], None]) -> int:
    """Submits to Dataflow and does not wait; a template's launcher must end when the job begins."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import GoogleCloudOptions, TestOptions

    from pipeline.options import OptionsError

    dry_run = options.view_as(TestOptions).dry_run
    cloud = options.view_as(GoogleCloudOptions)
    if dry_run and not (cloud.temp_location or cloud.staging_location):
        raise OptionsError("A dry run needs --temp_location gs://BUCKET/PATH, or Beam makes a bucket.")
    if not dry_run:
        credentials.application_default()
        _require_reachable(options)
        if cloud.update:
            _require_active(options)
        ensure_tables(options, "")
    pipeline = beam.Pipeline(runner="DataflowRunner", options=options)
    build(pipeline)
    pipeline.run()
    return 0


def _require_reachable(options: SigninOptions) -> None:
    """Raises StartError for a job whose workers would find no code of ours, or no tables."""
    from apache_beam.options.pipeline_options import SetupOptions, WorkerOptions

    if credentials.bigquery_emulator():
        raise StartError(
            "BIGQUERY_EMULATOR_HOST is set, so the tables of a job on Dataflow would be made there: unset it."
        )
    setup = options.view_as(SetupOptions)
    image = options.view_as(WorkerOptions).sdk_container_image
    if not (image or setup.setup_file or setup.extra_packages):
        raise StartError(
            "The workers need this project's code, which Beam's own image has not: give "
            "--sdk_container_image, or its wheel as --extra_package."
        )


def ensure_tables(options: SigninOptions, emulator: str) -> None:
    """Makes the tables in the BigQuery of the emulator's URL, or in Google's own if that is empty.

    Raises StartError where they cannot be made, or where they are there and cannot take the rows, and
    CredentialsError where Google takes no credentials of ours.
    """
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    from transforms import bigquery_tables

    table, dead_letter_table = options.tables()
    try:
        with bigquery_tables.client(options.project(), emulator) as bigquery:
            if options.create_disposition == "CREATE_IF_NEEDED":
                bigquery_tables.ensure_tables(bigquery, table, dead_letter_table)
            else:
                bigquery_tables.require_columns(bigquery, table, dead_letter_table)
    except bigquery_tables.SchemaError as error:
        raise StartError(str(error)) from error
    except GoogleAPIError as error:
        raise StartError(f"{table} and {dead_letter_table} cannot be made or read: {error}") from error
    except GoogleAuthError as error:
        purpose = f"{table} and {dead_letter_table} cannot be made or read"
        raise credentials.refused(purpose, error) from error


def _require_active(options: SigninOptions) -> None:
    """Raises StartError unless a job of that name is active: Beam 2.77 would look for it for ever.

    Raises CredentialsError where Google takes no credentials of ours.
    """
    from apache_beam.options.pipeline_options import GoogleCloudOptions
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.dataflow_v1beta3 import JobsV1Beta3Client, types

    cloud = options.view_as(GoogleCloudOptions)
    request = types.ListJobsRequest(
        project_id=options.project(),
        location=cloud.region,
        name=options.job_name(),
        filter=types.ListJobsRequest.Filter.ACTIVE,
    )
    purpose = f"The jobs in {cloud.region} cannot be listed"
    try:
        with JobsV1Beta3Client() as jobs:
            listed = jobs.list_jobs(request, timeout=DATAFLOW_CALL_SECONDS)
            is_active = any(job.name == options.job_name() for job in listed)
    except GoogleAuthError as error:
        raise credentials.refused(purpose, error) from error
    except GoogleAPIError as error:  # of credentials too: gRPC asks for the token within the call
        raise StartError(f"{purpose}: {error}") from error
    if not is_active:
        raise StartError(
            f"No active job is named {options.job_name()} in {cloud.region}, so there is none to update."
        )
