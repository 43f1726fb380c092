"""What a user may set when launching the job: the same names on a command line and as template parameters."""

from __future__ import annotations

import re
import shutil
from argparse import ArgumentParser
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, StandardOptions

from pipeline.credentials import bigquery_storage_emulator
from transforms.bigquery_rows import TableRef, parse_table
from transforms.write_traces import WriteTraces

if TYPE_CHECKING:
    from transforms.bigquery_write import WriteMethod

DEFAULT_JOB_NAME = "signin-user-tobigquery"
DEFAULT_REGION = "us-central1"
DEFAULT_TOPIC = "topic-user-signin"
DEFAULT_TABLE = "user_signin.signins"
DEFAULT_DEAD_LETTER_TABLE = "user_signin.dead_letters"
DEFAULT_ID_LABEL = "event_id"
DEFAULT_WRITE_METHOD = "AUTO"
WRITE_METHODS = (
    DEFAULT_WRITE_METHOD,
    "STORAGE_WRITE",
    "INSERT_ALL",
    "STREAMING_INSERTS",
    "STORAGE_WRITE_API",
)
# Of these the templates offer none: their images launch the job, and have no Java.
WRITE_METHODS_WITH_JAVA = frozenset({"STORAGE_WRITE_API"})

TOPIC_PATTERN = r"^projects/[^/]+/topics/[^/]+$"
OTLP_PATTERN = r"^https?://[^\s/]+(/\S*)?$"
SUBSCRIPTION_PATTERN = r"^projects/[^/]+/subscriptions/[^/]+$"


class OptionsError(ValueError):
    """Options that do not make a job; the message says how to mend them."""


class Source(NamedTuple):
    """Where messages come from: the full path of a topic or of a subscription, the other one empty."""

    topic: str
    subscription: str

    @property
    def project(self) -> str:
        """The project that owns the topic or the subscription."""
        return (self.topic or self.subscription).split("/")[1]


class _Option(NamedTuple):
    """One of the job's own options; `choices` where not every text is one."""

    name: str
    default: str
    help: str
    choices: tuple[str, ...] | None = None


_OPTIONS = (
    _Option(
        "--input_subscription",
        default="",
        help="Pub/Sub subscription to read, as projects/PROJECT/subscriptions/NAME. "
        "Give this or a topic, not both.",
    ),
    _Option(
        "--input_topic",
        default="",
        help="Pub/Sub topic to read, as projects/PROJECT/topics/NAME; the job makes a subscription of "
        f"its own and sees only what is published from then on. Without either: {DEFAULT_TOPIC}.",
    ),
    _Option(
        "--output_table",
        default=DEFAULT_TABLE,
        help="BigQuery table of the rows, as DATASET.TABLE, PROJECT.DATASET.TABLE or PROJECT:DATASET.TABLE.",
    ),
    _Option(
        "--dead_letter_table",
        default=DEFAULT_DEAD_LETTER_TABLE,
        help="BigQuery table of the messages that could not become a row, in the same form.",
    ),
    _Option(
        "--id_label",
        default=DEFAULT_ID_LABEL,
        help="Message attribute by which a message that was published twice within ten minutes counts "
        "once, except in Dataflow's at-least-once mode. The word none switches this off.",
    ),
    _Option(
        "--timestamp_attribute",
        default="",
        help="Message attribute that carries the event time. By default the time of publication counts, "
        "because Dataflow never gets past a message that lacks the attribute.",
    ),
    _Option(
        "--create_disposition",
        default="CREATE_IF_NEEDED",
        choices=("CREATE_IF_NEEDED", "CREATE_NEVER"),
        help="Whether dataset and tables are created when the job is launched and they do not exist.",
    ),
    _Option(
        "--write_method",
        default=DEFAULT_WRITE_METHOD,
        choices=WRITE_METHODS,
        help="How rows are appended: STORAGE_WRITE and INSERT_ALL are this project's own, any other is "
        "Beam's. AUTO is STORAGE_WRITE for Google, INSERT_ALL for an emulator.",
    ),
    _Option(
        "--dead_letter_topic",
        default="",
        help="Pub/Sub topic that gets each dead letter besides, as projects/PROJECT/topics/NAME.",
    ),
    _Option(
        "--pipeline_version",
        default="",
        help="Text that is stored with each dead letter, to tell which version of the job wrote it.",
    ),
    _Option(
        "--otlp_endpoint",
        default="",
        help="Base URL of an OTLP/HTTP receiver, such as http://collector:4318, that gets a span of the "
        "write for each sampled trace. Without it the OTEL_ variables of the worker count.",
    ),
)


class SigninOptions(PipelineOptions):  # type: ignore[misc]
    """The job's own options. All are text: a template parameter cannot carry a flag."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        for name, default, text, choices in _OPTIONS:
            parser.add_argument(name, default=default, help=text, choices=choices)

    def project(self) -> str:
        """The project of the job. Raises OptionsError where none can be known."""
        named = self.view_as(GoogleCloudOptions).project or _project_of(
            self.input_topic or self.input_subscription
        )
        if not named:
            raise OptionsError(
                "Which project? Give --project, or the full path of a subscription or a topic."
            )
        return str(named)

    def source(self) -> Source:
        """Where to read. Raises OptionsError for two sources or a malformed one."""
        if self.input_topic and self.input_subscription:
            raise OptionsError("Give --input_topic or --input_subscription, not both.")
        if self.input_subscription:
            _require(SUBSCRIPTION_PATTERN, self.input_subscription, "--input_subscription")
            return Source("", self.input_subscription)
        topic = self.input_topic or f"projects/{self.project()}/topics/{DEFAULT_TOPIC}"
        _require(TOPIC_PATTERN, topic, "--input_topic")
        return Source(topic, "")

    def tables(self) -> tuple[TableRef, TableRef]:
        """The table of the rows and that of the dead letters. Raises OptionsError for a malformed name."""
        try:
            project = self.project()
            return parse_table(self.output_table, project), parse_table(self.dead_letter_table, project)
        except OptionsError:
            raise
        except ValueError as error:
            raise OptionsError(str(error)) from error

    def method(self, bigquery_emulator: str) -> WriteMethod:
        """How rows are appended to Google's BigQuery, or to the emulator of a URL.

        Raises OptionsError for a way that does not lead there.
        """
        chosen: WriteMethod | Literal["AUTO"] = self.write_method
        if chosen == "AUTO":
            return "INSERT_ALL" if bigquery_emulator else "STORAGE_WRITE"
        if chosen == "STORAGE_WRITE" and bigquery_emulator and not bigquery_storage_emulator():
            raise OptionsError(
                "The local BigQuery has no Storage Write API: take --write_method INSERT_ALL, or set "
                "BIGQUERY_STORAGE_EMULATOR_HOST to the HOST:PORT of one that has."
            )
        if chosen in WRITE_METHODS_WITH_JAVA and shutil.which("java") is None:
            raise OptionsError(
                f"--write_method {chosen} needs Java where the job is launched; STORAGE_WRITE, which "
                "speaks the same API, does not."
            )
        return chosen

    def traces(self) -> WriteTraces:
        """Whose messages the write step's spans are about, and where these go."""
        return WriteTraces(self.input_subscription or self.input_topic, self.otlp_endpoint)

    def deduplicating_attribute(self) -> str | None:
        """The attribute that identifies a message, or None."""
        return None if self.id_label in ("", "none") else str(self.id_label)

    def job_name(self) -> str:
        """The job's name, the default one included."""
        return str(self.view_as(GoogleCloudOptions).job_name or DEFAULT_JOB_NAME)

    def origin(self) -> dict[str, str]:
        """What each dead letter tells of the job that wrote it."""
        return {"pipeline_version": str(self.pipeline_version), "job_id": self.job_name()}


def parse(argv: list[str] | None) -> SigninOptions:
    """Reads the command line (None: the process's own) and fills in the job's defaults.

    Raises OptionsError.
    """
    signin = read_command_line(argv, DEFAULT_JOB_NAME, streaming=True)
    signin.source()
    signin.tables()
    return signin


def read_command_line(argv: list[str] | None, default_job_name: str, *, streaming: bool) -> SigninOptions:
    """What all our pipelines have in common: name, region and project.

    Raises OptionsError, also for an option that nobody knows, which Beam only logs. On Dataflow that
    stays a log line: the template launcher may add an option that is newer than this Beam.
    """
    options = PipelineOptions(argv, save_main_session=False, streaming=streaming)
    unknown = _unknown_options(options)
    if unknown and options.view_as(StandardOptions).runner != "DataflowRunner":
        raise OptionsError(f"Unknown option: {', '.join(unknown)}")
    cloud = options.view_as(GoogleCloudOptions)
    cloud.job_name = cloud.job_name or default_job_name
    cloud.region = cloud.region or DEFAULT_REGION
    signin: SigninOptions = options.view_as(SigninOptions)
    cloud.project = signin.project()
    if signin.dead_letter_topic:
        _require(TOPIC_PATTERN, signin.dead_letter_topic, "--dead_letter_topic")
        if signin.dead_letter_topic == signin.input_topic:
            raise OptionsError("--dead_letter_topic is --input_topic: each dead letter would come back")
    if signin.otlp_endpoint:
        _require(OTLP_PATTERN, signin.otlp_endpoint, "--otlp_endpoint")
    return signin


def _unknown_options(options: Any) -> list[str]:
    known = options.get_all_options()
    everything = options.get_all_options(retain_unknown_options=True)
    return [f"--{name}" for name in sorted(set(everything) - set(known))]


def _project_of(path: str) -> str:
    parts = path.split("/")
    return parts[1] if len(parts) > 1 else ""


def _require(pattern: str, value: str, option: str) -> None:
    if not re.fullmatch(pattern, value):
        raise OptionsError(
            f"{option} {value!r} must look like {pattern.strip('^$').replace('[^/]+', 'NAME')}"
        )
