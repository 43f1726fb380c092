"""The pipeline as a program: its options, its graph, and what it asks for before it runs."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, SetupOptions, StandardOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner

from pipeline.options import OptionsError, parse
from pipeline.pubsub_source import RawMessageCoder
from pipeline.user_signin import build, run
from tests.graph_snapshot import DRY_RUN, SNAPSHOT
from tests.running import environment

ROOT = Path(__file__).parents[1]
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
        (
            [f"--{name}=projects/my-project/topics/t" for name in ("input_topic", "dead_letter_topic")],
            "would come back",
        ),
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


@pytest.fixture(autouse=True)
def quiet_beam():
    """`run` sets the levels of Beam's loggers, as a process of its own may."""
    names = ["", ".typehints", ".runners.worker", ".runners.common"]
    levels = {f"apache_beam{name}": logging.getLogger(f"apache_beam{name}").level for name in names}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
