"""The pipeline as a program: its options, its graph, and its runs on this machine."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apache_beam as beam
import grpc
import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, SetupOptions, StandardOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from pipeline.options import OptionsError, parse
from pipeline.pubsub_source import RawMessageCoder
from pipeline.user_signin import build, run
from tests.bigquery_servers import PROJECT, local_bigquery
from tests.graph_snapshot import DRY_RUN, SNAPSHOT
from tests.pubsub_process import PubsubProcess
from tests.signin_samples import load_samples

ROOT = Path(__file__).parents[1]
TOPIC = f"projects/{PROJECT}/topics/topic-user-signin"
TRANSFORMS = [line.partition(" | ")[0] for line in SNAPSHOT.read_text().splitlines()]


@pytest.fixture
def submitted(monkeypatch):
    """The runners whose `run_pipeline` was called."""
    runners = []
    run_pipeline = DataflowRunner.run_pipeline

    def remember(self, *arguments, **options):
        runners.append(self)
        return run_pipeline(self, *arguments, **options)

    monkeypatch.setattr(DataflowRunner, "run_pipeline", remember)
    return runners


def environment(**variables):
    """The environment of a machine that knows nothing of Google."""
    kept = {k: value for k, value in os.environ.items() if "GOOGLE" not in k and "EMULATOR" not in k}
    return {**kept, "CLOUDSDK_CONFIG": "/nonexistent", "NO_GCE_CHECK": "true", **variables}


# Options


def test_the_names_of_the_article_are_the_defaults():
    options = parse(["--project=my-project"])
    assert options.source().topic == "projects/my-project/topics/topic-user-signin"
    assert options.job_name() == "signin-user-tobigquery"
    assert options.view_as(GoogleCloudOptions).region == "us-central1"
    assert [str(table) for table in options.tables()] == [
        "my-project.user_signin.signins",
        "my-project.user_signin.dead_letters",
    ]
    assert options.deduplicating_attribute() == "event_id"
    assert options.timestamp_attribute == ""


def test_a_job_streams_and_takes_no_main_session_with_it():
    options = parse(["--project=my-project"])
    assert options.view_as(StandardOptions).streaming is True
    assert options.view_as(SetupOptions).save_main_session is False


@pytest.mark.parametrize("name", ["other-project:a.b", "other-project.a.b"])
def test_a_table_may_lie_in_another_project(name):
    table, _ = parse(["--project=my-project", f"--output_table={name}"]).tables()
    assert table == ("other-project", "a", "b")


def test_the_project_is_that_of_the_subscription_when_none_is_named():
    options = parse(["--input_subscription=projects/my-project/subscriptions/s"])
    assert options.project() == "my-project"
    assert options.source() == ("", "projects/my-project/subscriptions/s")


def test_deduplication_can_be_switched_off():
    assert parse(["--project=my-project", "--id_label=none"]).deduplicating_attribute() is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Which project"),
        (
            ["--input_topic=projects/p/topics/t", "--input_subscription=projects/p/subscriptions/s"],
            "not both",
        ),
        (["--project=my-project", "--input_topic=t"], "--input_topic 't'"),
        (["--project=my-project", "--input_subscription=projects/p/topics/t"], "--input_subscription"),
        (["--project=my-project", "--output_table=signins"], "signins"),
        (["--project=my-project", "--output_tabel=a.b"], "--output_tabel"),
    ],
)
def test_options_that_make_no_job_are_refused_with_a_sentence(arguments, sentence, monkeypatch, caplog):
    with pytest.raises(OptionsError, match=sentence):
        parse(arguments)
    assert run(arguments) == 2
    assert sentence in caplog.text


def test_a_runner_that_is_not_offered_is_refused(caplog):
    assert run(["--project=my-project", "--runner=FlinkRunner"]) == 2
    assert "FlinkRunner" in caplog.text


def test_an_option_newer_than_this_beam_does_not_stop_a_template(caplog):
    assert parse([*DRY_RUN, "--an_option_of_tomorrow=1"]).project() == "my-project"


# The graph on Dataflow


def test_dataflow_itself_reads_pubsub_and_drops_what_was_published_twice(submitted):
    assert run([*DRY_RUN, "--input_subscription=projects/my-project/subscriptions/s"]) == 0
    transforms = submitted[0].proto_pipeline.components.transforms.values()
    (payload,) = (t.spec.payload for t in transforms if t.spec.urn == "beam:transform:pubsub_read:v1")
    read = beam_runner_api_pb2.PubSubReadPayload.FromString(payload)
    assert read.subscription == "projects/my-project/subscriptions/s"
    assert read.id_attribute == "event_id"
    assert read.with_attributes
    assert not read.timestamp_attribute


def test_a_dry_run_asks_nobody_and_a_job_on_dataflow_knows_no_emulator(submitted, monkeypatch):
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", "http://127.0.0.1:1")
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
    assert run(DRY_RUN) == 0
    assert b"127.0.0.1" not in submitted[0].proto_pipeline.SerializeToString()


def test_a_dry_run_without_a_bucket_does_not_try_to_make_one(caplog):
    assert run([argument for argument in DRY_RUN if "gs://" not in argument]) == 2
    assert "--temp_location" in caplog.text


def test_a_raw_message_survives_its_coder():
    coder = RawMessageCoder()
    message = coder.decode(b"")
    message.data = b"\xff"
    message.attributes["key"] = "value"
    assert coder.decode(coder.encode(message)) == message


def test_the_file_runs_as_a_script_from_any_directory(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "pipeline" / "user_signin.py", *DRY_RUN],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_beams_own_direct_runner_takes_the_graph():
    options = parse(["--project=my-project", "--runner=DirectRunner", "--id_label=none"])
    pipeline = beam.Pipeline(runner=BundleBasedDirectRunner(), options=options)
    build(pipeline, options, bigquery_emulator="http://127.0.0.1:1")
    names = {transform.unique_name for transform in pipeline.to_runner_api().components.transforms.values()}
    assert set(TRANSFORMS) <= names


# Credentials


@pytest.mark.parametrize("runner", ["LocalRunner", "DirectRunner", "DataflowRunner"])
def test_without_credentials_the_command_that_makes_them_is_named(runner, monkeypatch, caplog):
    for name in list(os.environ):
        if "EMULATOR" in name or "GOOGLE" in name:
            monkeypatch.delenv(name)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    assert run(["--project=my-project", f"--runner={runner}"]) == 2
    assert "gcloud auth application-default login" in caplog.text


# What a worker of Dataflow needs


@pytest.mark.parametrize(
    ("emulator", "arguments", "sentence"),
    [
        ("", [], "--sdk_container_image"),
        ("http://127.0.0.1:1", ["--sdk_container_image=image"], "BIGQUERY_EMULATOR_HOST is set"),
    ],
)
def test_a_job_whose_workers_cannot_work_is_not_submitted(
    emulator, arguments, sentence, submitted, monkeypatch, caplog
):
    monkeypatch.setattr("pipeline.credentials.application_default", lambda: None)
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", emulator)
    assert run([*DRY_RUN[:-1], *arguments]) == 2
    assert sentence in caplog.text
    assert not submitted


# Runs on this machine


class Local:
    """The local Pub/Sub and BigQuery, and jobs between them."""

    def __init__(self, pubsub, bigquery, directory):
        self.bigquery = bigquery
        self.environment = environment(PUBSUB_EMULATOR_HOST=pubsub, BIGQUERY_EMULATOR_HOST=bigquery)
        self.directory = directory
        channel = grpc.insecure_channel(pubsub)
        self.publisher = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        self.subscribers = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        self.publisher.create_topic(name=TOPIC)

    def subscribe(self, name):
        path = f"projects/{PROJECT}/subscriptions/{name}"
        self.subscribers.create_subscription(name=path, topic=TOPIC)
        return path

    def publish(self, *payloads):
        for start in range(0, len(payloads), 1000):
            messages = [{"data": payload} for payload in payloads[start : start + 1000]]
            self.publisher.publish(topic=TOPIC, messages=messages)

    def select(self, sql):
        """The rows of a query, each a list of texts."""
        request = urllib.request.Request(
            f"{self.bigquery}/bigquery/v2/projects/{PROJECT}/queries",
            json.dumps({"query": sql, "useLegacySql": False}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            rows = json.load(answer).get("rows", [])
        return [[cell["v"] for cell in row["f"]] for row in rows]

    @contextlib.contextmanager
    def job(self, *arguments):
        with (self.directory / "job.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "service.local.lifeline", "pipeline.user_signin", *arguments],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            try:
                yield Job(process, self.directory / "job.log")
            finally:
                process.kill()
                process.communicate(timeout=10)


class Job:
    """A running job; `events` is what it said so far."""

    def __init__(self, process, log):
        self.process = process
        self.log = log
        self.events = []

    def read(self):
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        self.events.append(json.loads(line))
        return self.events[-1]

    def until_state(self, state):
        while self.read() != {"event": "state", "state": state}:
            pass

    def until_counted(self, name, value):
        while self.counters().get(name, 0) < value:
            self.read()

    def counters(self):
        metrics = [event for event in self.events if event["event"] == "metrics"]
        return {counter["name"]: counter["value"] for counter in metrics[-1]["counters"]} if metrics else {}

    def stop(self, number):
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    directory = tmp_path_factory.mktemp("local")
    bigquery_directory = directory / "bigquery"
    bigquery_directory.mkdir()
    with PubsubProcess(directory / "pubsub") as pubsub, local_bigquery(bigquery_directory) as bigquery:
        yield Local(pubsub.address, bigquery, directory)


def signins(number, prefix):
    return [
        json.dumps({"userid": f"{prefix}-{index}", "date": "2017-10-17T20:57:17.338320"}).encode()
        for index in range(number)
    ]


def test_every_message_becomes_one_row_or_one_dead_letter(local):
    subscription = local.subscribe("whole")
    article = b'{"userid": "93234234", "date": "2017-10-17T20:57:17.338320"}'
    local.publish(article, b"{broken", b'{"userid": 1, "date": "2017-10-17T20:57:17Z"}', b"\xff\x00")
    local.publish(*signins(50, "whole"))
    with local.job(f"--input_subscription={subscription}", "--output_table=a.b") as job:
        job.until_state("RUNNING")
        job.until_counted("messages_acknowledged", 54)
        assert job.stop(signal.SIGTERM) == 0
        job.until_state("DRAINED")
        counters = job.counters()
    assert counters["rows_written"] == 51
    assert counters["dead_letters_written"] == 3
    assert local.select("SELECT COUNT(*), COUNT(DISTINCT userid) FROM a.b") == [["51", "51"]]
    assert local.select("SELECT userid FROM a.b WHERE userid = '93234234'") == [["93234234"]]
    letters = local.select("SELECT reason, job_id FROM user_signin.dead_letters ORDER BY reason")
    assert [job_id for _, job_id in letters] == ["signin-user-tobigquery"] * 3
    assert [reason for reason, _ in letters] == ["invalid_json", "invalid_utf8", "userid_invalid"]


def test_each_sample_becomes_on_its_whole_way_what_the_file_says(local):
    samples = load_samples()
    subscription = local.subscribe("samples")
    for start in range(0, len(samples), 50):
        part = [{"data": s.body, "attributes": {"sample": s.name}} for s in samples[start : start + 50]]
        local.publisher.publish(topic=TOPIC, messages=part)
    tables = ("--output_table=samples.signins", "--dead_letter_table=samples.letters")
    with local.job(f"--input_subscription={subscription}", *tables) as job:
        job.until_state("RUNNING")
        job.until_counted("messages_acknowledged", len(samples))
        assert job.stop(signal.SIGTERM) == 0
    events = [sample.outcome for sample in samples if not sample.error]
    rows = local.select("SELECT userid, event_id, UNIX_MICROS(date), attributes FROM samples.signins")
    assert Counter((*row[:2], int(row[2]), frozenset(_pairs(row[3]))) for row in rows) == Counter(
        (event.userid, event.event_id, _micros(event.date), frozenset(event.attributes.items()))
        for event in events
    )
    letters = local.select("SELECT reason, payload, attributes FROM samples.letters")
    found = [(_sample_name(attributes), reason, payload) for reason, payload, attributes in letters]
    expected = [
        (sample.name, sample.error, base64.b64encode(sample.body).decode())
        for sample in samples
        if sample.error
    ]
    assert sorted(found) == sorted(expected)


def _sample_name(attributes):
    """The attribute `sample` of records as a query answers them."""
    return dict(_pairs(attributes))["sample"]


def _pairs(attributes):
    """The keys and values of records as a query answers them."""
    return [tuple(cell["v"] for cell in record["v"]["f"]) for record in attributes]


def _micros(text):
    """Microseconds since 1970 of the UTC text that an event has."""
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


@pytest.mark.soak  # ten seconds of it are the deadline after which Pub/Sub gives messages again
def test_a_killed_job_loses_nothing(local):
    subscription = local.subscribe("killed")
    table = "--output_table=killed.signins"
    local.publish(*signins(20_000, "killed"))
    with local.job(f"--input_subscription={subscription}", table) as job:
        job.until_counted("messages_acknowledged", 1)
        job.stop(signal.SIGKILL)
    with local.job(f"--input_subscription={subscription}", table) as job:
        job.until_state("RUNNING")
        deadline = time.monotonic() + 30
        while local.select("SELECT COUNT(DISTINCT userid) FROM killed.signins") != [["20000"]]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert job.stop(signal.SIGTERM) == 0


def test_a_cancelled_job_leaves_with_130(local):
    subscription = local.subscribe("cancelled")
    with local.job(f"--input_subscription={subscription}") as job:
        job.until_state("RUNNING")
        assert job.stop(signal.SIGINT) == 130


def test_a_drain_before_the_job_runs_is_kept(local):
    subscription = local.subscribe("early")
    with local.job(f"--input_subscription={subscription}") as job:
        deadline = time.monotonic() + 20
        handled = 1 << (signal.SIGTERM - 1)
        while not _caught_signals(job.process.pid) & handled:
            assert time.monotonic() < deadline
        assert job.stop(signal.SIGTERM) == 0
        job.until_state("DRAINED")


def _caught_signals(pid):
    """The mask of the signals for which the process has handlers, on Linux."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return int(line.split()[1], 16)
    return 0


def test_a_topic_is_read_through_a_subscription_that_goes_with_the_job(local):
    def subscriptions():
        return {s for s in local.publisher.list_topic_subscriptions(topic=TOPIC) if "signin-user-to" in s}

    with local.job(f"--project={PROJECT}", "--output_table=topic.signins") as job:
        job.until_state("RUNNING")
        assert len(subscriptions()) == 1
        local.publish(*signins(3, "topic"))
        job.until_counted("messages_acknowledged", 3)
        assert job.stop(signal.SIGTERM) == 0
    assert subscriptions() == set()


def test_a_job_on_a_subscription_that_does_not_exist_fails_with_a_sentence(local):
    with local.job(f"--input_subscription=projects/{PROJECT}/subscriptions/nowhere") as job:
        assert job.process.wait(20) == 1
        event = job.read()
        while event["event"] != "error":  # the graph comes first
            event = job.read()
    assert "NOT_FOUND" in event["message"]
    assert "Traceback" not in job.log.read_text()


@pytest.fixture(autouse=True)
def quiet_beam():
    """`run` sets the levels of Beam's loggers, as a process of its own may."""
    names = ["", ".typehints", ".runners.worker", ".runners.common"]
    levels = {f"apache_beam{name}": logging.getLogger(f"apache_beam{name}").level for name in names}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
