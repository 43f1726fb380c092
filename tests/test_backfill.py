"""The backfill: lines of files become rows and dead letters, each of which knows its file and line."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline.backfill.options import parse
from pipeline.backfill.source import ReadFiles
from pipeline.backfill_signin import build, run
from pipeline.options import OptionsError
from tests.bigquery_servers import PROJECT, forget_clients, local_bigquery, set_faults
from tests.graph_snapshot import SNAPSHOT, dry_run
from tests.running import environment
from tests.signin_samples import load_samples
from transforms.bigquery_tables import client

ROOT = Path(__file__).parents[1]
GOOD = b'{"userid": "u%d", "date": "2017-10-17T20:57:17.338320"}\n'
# Lines cannot hold line ends.
SAMPLES = [sample for sample in load_samples() if b"\n" not in sample.body]


# Options

PROJECT_OPTION = f"--project={PROJECT}"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--input_files"),
        (["--input_files=relative/*.json"], "--input_files"),
        (["--input_files=gs://bucket"], "--input_files"),
        (["--input_files=/a", "--runner=DataflowRunner"], "gs://"),
        (["--input_files=/a", "--input_topic=projects/p/topics/t"], "--input_topic"),
        (["--input_files=gs://bucket/a", "--runner=DataflowRunner", "--update"], "update"),
        (["--input_files=/a", "--output_table=signins"], "signins"),
        (["--input_files=/a", "--input_flies=/b"], "--input_flies"),
    ],
)
def test_options_that_make_no_backfill_are_refused_with_a_sentence(arguments, sentence, caplog):
    with pytest.raises(OptionsError, match=sentence):
        parse([PROJECT_OPTION, *arguments])
    assert run([PROJECT_OPTION, *arguments]) == 2
    assert sentence in caplog.text


def test_a_runner_that_is_not_offered_is_refused_too(caplog):
    assert run([PROJECT_OPTION, "--input_files=/a", "--runner=DirectRunner"]) == 2
    assert "DirectRunner" in caplog.text


def test_a_pattern_without_files_is_refused_with_a_sentence(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", "http://127.0.0.1:1")
    assert run([PROJECT_OPTION, f"--input_files={tmp_path}/*"]) == 2
    assert "No file is named" in caplog.text


def test_on_dataflow_it_is_a_batch_job_with_the_steps_of_the_streaming_one():
    submission = dry_run(run, "--input_files=gs://bucket/2024/*.json")
    streaming = {line.partition(" | ")[0] for line in SNAPSHOT.read_text().splitlines()}
    assert set(submission.names()) >= {name for name in streaming if not name.startswith("Read messages")}
    assert not any("pubsub" in t.spec.urn for t in submission.proto.components.transforms.values())


# Runs


class Warehouse:
    """The local BigQuery."""

    def __init__(self, url):
        self.url = url

    def select(self, sql):
        bigquery = client(PROJECT, self.url)
        try:
            return [list(row.values()) for row in bigquery.query(sql).result(timeout=30)]
        finally:
            bigquery.close()

    def letters(self, dataset):
        rows = self.select(f"SELECT reason, payload, attributes FROM {dataset}.letters")
        return [
            (reason, payload, {a["key"]: a["value"] for a in attributes})
            for reason, payload, attributes in rows
        ]


def arguments(files, dataset):
    tables = [f"--output_table={dataset}.signins", f"--dead_letter_table={dataset}.letters"]
    return [PROJECT_OPTION, f"--input_files={files}", *tables]


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory):
    with local_bigquery(tmp_path_factory.mktemp("bigquery")) as url:
        yield Warehouse(url)


@pytest.fixture
def run_here(warehouse, monkeypatch, capfd):
    """Runs a backfill in this process; returns its exit code and what it told."""
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", warehouse.url)

    def run_it(files, dataset):
        code = run(arguments(files, dataset))
        forget_clients()
        return code, [json.loads(line) for line in capfd.readouterr().out.splitlines()]

    return run_it


@pytest.fixture
def files(tmp_path):
    """Two files: the samples with good lines around them, and a packed one that ends in damage."""
    samples = b"".join(sample.body + b"\n" for sample in SAMPLES)
    (tmp_path / "a.json").write_bytes(GOOD % 1 + samples + GOOD % 2)
    (tmp_path / "b.json").write_bytes(gzip.compress(GOOD % 3)[:-6])
    return tmp_path


def expect_rows_and_letters(warehouse, files, dataset):
    bad = [sample for sample in SAMPLES if sample.error]
    ((rows, ids),) = warehouse.select(f"SELECT COUNT(*), COUNT(DISTINCT event_id) FROM {dataset}.signins")
    good = len(SAMPLES) - len(bad) + 3
    assert rows == good
    assert ids >= good - sum(sample.outcome.event_id is not None for sample in SAMPLES if not sample.error)
    letters = warehouse.letters(dataset)
    expected = [
        (sample.error, sample.body, str(number), "a.json")
        for number, sample in enumerate(SAMPLES, start=2)
        if sample.error
    ]
    found = [(reason, payload, a["line"], Path(a["file"]).name) for reason, payload, a in letters]
    assert sorted(found) == sorted([*expected, ("file_corrupt", b"", "2", "b.json")])
    assert {Path(a["file"]).parent for _, _, a in letters} == {files}


def test_each_line_becomes_one_row_or_one_dead_letter_with_file_and_number(warehouse, files, run_here):
    code, events = run_here(f"{files}/*.json", "whole")
    assert code == 0
    expect_rows_and_letters(warehouse, files, "whole")
    assert [event["state"] for event in events if event["event"] == "state"] == ["RUNNING", "DONE"]
    counters = {c["name"]: c["value"] for c in events[-2]["counters"]}
    assert counters["lines_read"] == len(SAMPLES) + 4
    assert counters["dead_letters_file_corrupt"] == 1
    assert counters["rows_written"] + counters["dead_letters_written"] == len(SAMPLES) + 4


def test_the_graph_of_dataflow_does_the_same_with_files_in_many_segments(warehouse, files):
    backfill = parse(arguments(f"{files}/*.json", "divided"))
    from pipeline.runners import ensure_tables

    ensure_tables(backfill.options, warehouse.url)
    source = ReadFiles(backfill.files, backfill.options.origin(), segment_bytes=1000)
    with beam.Pipeline(runner=FnApiRunner(), options=backfill.options) as pipeline:
        build(pipeline, backfill, source, warehouse.url)
    expect_rows_and_letters(warehouse, files, "divided")


def test_files_that_are_read_twice_give_the_same_ids(warehouse, tmp_path, run_here):
    (tmp_path / "twice.json").write_bytes(b"".join(GOOD % number for number in range(50)))
    for _ in range(2):
        assert run_here(f"{tmp_path}/twice.json", "twice")[0] == 0
    counted = "SELECT COUNT(*), COUNT(DISTINCT event_id) FROM twice.signins"
    assert warehouse.select(counted) == [[100, 50]]


def test_sigterm_ends_a_backfill_between_two_batches(warehouse, tmp_path):
    (tmp_path / "large.json").write_bytes(GOOD % 7 * 400_000)
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.backfill_signin", *arguments(f"{tmp_path}/large.json", "drained")],
        cwd=ROOT,
        env=environment(BIGQUERY_EMULATOR_HOST=warehouse.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        guard = threading.Timer(60, process.kill)
        guard.start()
        events = []
        for line in process.stdout:
            events.append(json.loads(line))
            if events[-1]["event"] == "metrics" and len(events) == 2:
                process.send_signal(signal.SIGTERM)
        guard.cancel()
    assert process.returncode == 0
    states = [event["state"] for event in events if event["event"] == "state"]
    assert states == ["RUNNING", "DRAINING", "DRAINED"]
    (counters,) = [event["counters"] for event in events if event["event"] == "metrics"][-1:]
    written = {c["name"]: c["value"] for c in counters}["rows_written"]
    assert 0 < written < 400_000
    assert warehouse.select("SELECT COUNT(*) FROM drained.signins") == [[written]]


def test_a_batch_that_cannot_be_written_fails_the_job_and_names_its_place(
    warehouse, tmp_path, run_here, monkeypatch
):
    monkeypatch.setattr("pipeline.backfill.session.PAUSE_SECONDS", 0.05)
    (tmp_path / "refused.json").write_bytes(GOOD % 1)
    set_faults(warehouse.url, {"method": "insertAll", "code": "403"})
    try:
        code, events = run_here(f"{tmp_path}/refused.json", "refused")
    finally:
        set_faults(warehouse.url)
    assert code == 1
    told = [event["message"] for event in events if event["event"] == "error"]
    assert all(f"1 lines from {tmp_path}/refused.json, line 1 on were not written" in line for line in told)
    assert len(told) == 4
    assert warehouse.select("SELECT COUNT(*) FROM refused.signins") == [[0]]


async def test_post_jobs_launches_it_and_it_ends_as_done(warehouse, files, world, monkeypatch):
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", warehouse.url)
    tables = {"output_table": "posted.signins", "dead_letter_table": "posted.letters"}
    asked = {
        "pipeline": "backfill-signin",
        "name": "backfill",
        "parameters": {"input_files": f"{files}/*.json"},
    }
    asked["parameters"] |= tables
    job = await world.launch(**asked)
    await world.until(job["id"], "RUNNING", "DONE", "FAILED")  # each wait has its own deadline
    ended = await world.until(job["id"], "DONE", "FAILED")
    assert (ended["state"], ended["cause"]) == ("DONE", None)
    assert ended["counters"]["rows_written"] == len([s for s in SAMPLES if not s.error]) + 3
    assert "input_subscription" not in job["parameters"]


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({}, "body.parameters.input_files"),
        ({"input_files": "here"}, "body.parameters.input_files"),
        ({"input_files": "/a", "id_label": "x"}, "body.parameters.id_label"),
    ],
)
async def test_parameters_that_make_no_backfill_are_named(parameters, field, world):
    answer = await world.http.post("/jobs", json={"pipeline": "backfill-signin", "parameters": parameters})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameters")
    assert [error["field"] for error in answer.json()["errors"]] == [field]
