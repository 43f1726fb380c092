"""Which way to write is taken where, and that Beam's own ways lose no refused row."""

from __future__ import annotations

import base64
import subprocess
import sys

import google.auth
import pytest
from google.auth.credentials import AnonymousCredentials

from pipeline.local_engine.batch_source import ReadLeasedMessages
from pipeline.local_engine.runs import GraphRuns, UnsupportedGraphError
from pipeline.options import OptionsError, parse
from pipeline.user_signin import build, run
from tests.bigquery_servers import PROJECT, StrictBigQuery, refusal
from tests.graph_snapshot import dry_run
from tests.write_servers import TABLE, event, messages_of, run_pipeline
from transforms.bigquery_write import WriteSignins
from transforms.signin_event import encode

URL = "http://127.0.0.1:9050"


def options(*arguments):
    return parse(["--project=signin-local", *arguments])


def test_by_default_google_gets_the_storage_write_api_and_an_emulator_insert_all():
    assert options().method("") == "STORAGE_WRITE"
    assert options().method(URL) == "INSERT_ALL"


def test_an_emulator_without_the_storage_write_api_is_told_before_the_start(monkeypatch):
    monkeypatch.delenv("BIGQUERY_STORAGE_EMULATOR_HOST", raising=False)
    chosen = options("--write_method=STORAGE_WRITE")
    with pytest.raises(OptionsError, match="has no Storage Write API: take --write_method INSERT_ALL"):
        chosen.method(URL)
    monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", "127.0.0.1:1")
    assert chosen.method(URL) == "STORAGE_WRITE"


def test_beams_storage_write_api_without_java_is_told_before_the_start(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OptionsError, match="needs Java where the job is launched"):
        options("--write_method=STORAGE_WRITE_API").method("")


def test_a_dead_letter_topic_is_a_whole_path():
    with pytest.raises(OptionsError, match="--dead_letter_topic 'alerts' must look like"):
        options("--dead_letter_topic=alerts")


def test_the_local_engine_runs_no_write_that_groups():
    chosen = options("--write_method=STREAMING_INSERTS")
    with pytest.raises(UnsupportedGraphError, match="a grouping by key"):
        GraphRuns(lambda pipeline: build(pipeline, chosen, ReadLeasedMessages(), URL), chosen)


def test_beams_streaming_inserts_send_a_refused_row_once_and_it_becomes_a_dead_letter(monkeypatch):
    monkeypatch.setattr(google.auth, "default", lambda *_, **__: (AnonymousCredentials(), PROJECT))
    with StrictBigQuery() as strict:
        strict.takes_insert_ids = True
        strict.script = [(200, {"insertErrors": [refusal(0, "invalid", message="bad user")]})]
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", strict.url)
        step = WriteSignins(TABLE, method="STREAMING_INSERTS", emulator_host=strict.url, job_id="job-9")
        letters = run_pipeline([*messages_of(3), b"\xff"], step).letters
    assert len(strict.requests) == 1
    assert len(strict.taken) == 2
    reasons = {letter["reason"]: letter for letter in letters}
    assert set(reasons) == {"row_refused", "invalid_utf8"}
    (refused,) = ({f"id-{n}" for n in range(3)} - {row["event_id"] for row in strict.taken},)
    number = int(next(iter(refused))[3:])
    assert base64.b64decode(reasons["row_refused"]["payload"]) == encode(event(number))
    assert reasons["row_refused"]["job_id"] == "job-9"


def test_no_worker_of_beams_streaming_inserts_walks_all_modules_to_weigh_a_row():
    plugins = dry_run(
        run,
        "--input_subscription=projects/my-project/subscriptions/signins",
        "--write_method=STREAMING_INSERTS",
    ).beam_plugins
    script = (
        "import sys, objsize\n"
        "from apache_beam.runners.worker.sdk_worker_main import _import_beam_plugins as start\n"
        "assert objsize.default_settings.exclude_modules_globals\n"
        "start(sys.argv[1:])\n"
        "assert not objsize.default_settings.exclude_modules_globals\n"
    )
    subprocess.run([sys.executable, "-c", script, *plugins], check=True, timeout=60)
