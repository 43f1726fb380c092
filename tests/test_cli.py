"""The `signin` command: what it prints, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from service.cli.arrivals import Table
from service.cli.demo import BROKEN_MESSAGES
from service.config import Settings
from service.load.signins import PUBLISHED, REFUSED, UNKNOWN, Signins
from service.local.faults import Fault
from tests.running import PROJECT, Up, clean_environment, until
from tests.signin_command import signin
from transforms import bigquery_tables

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    up = Up(tmp_path_factory.mktemp("up")).start()
    yield up
    assert up.stop() == 0


def test_a_job_is_launched_shown_fed_and_drained_from_the_command_line(up):
    def run(*arguments):
        done = signin(*arguments, cwd=up.directory)
        assert done.returncode == 0, done.stderr
        return done.stdout

    launched = run("jobs", "launch", "--wait", "40", "--name", "by-hand")
    job_id = launched.split()[0]
    assert "RUNNING" in launched
    answer = json.loads(run("emit", "--userid", "ada", "--date", "2026-01-02T03:04:05Z", "--event-id", "e-1"))
    assert answer["event_id"] == "e-1"
    assert answer["status"] == "published"
    assert "25 accepted" in run("emit", "--count", "25", "--rate", "500")
    until(lambda: len(up.rows()) == 26)
    shown = run("rows", "--limit", "1000")
    assert "2026-01-02 03:04:05.000" in shown
    assert "e-1" in shown
    assert "Dead letters" in run("rows", "--dead-letters")
    load_and_count(up, run)
    assert job_id in run("jobs", "list", "--active")
    piped = signin("jobs", "list", cwd=up.directory, COLUMNS="").stdout.splitlines()
    assert [job_id in line and "by-hand" in line and "RUNNING" in line for line in piped].count(True) == 1
    until(lambda: "signins_parsed" in run("jobs", "show", job_id))
    assert "DRAINED" in run("jobs", "drain", job_id, "--wait", "40")
    assert job_id not in run("jobs", "list", "--active")
    refused = signin("jobs", "cancel", job_id, cwd=up.directory)
    assert refused.returncode == 1
    assert "action_not_allowed" in refused.stderr


def load_and_count(up, run):
    """A load whose rows are awaited; then one of its events is missing, and one is there twice."""
    told = run("loadtest", "--rate", "500", "--duration", "0.4", "--warm-up", "0.1", "--verify")
    assert "of 250 accepted events 0 are lost, 0 further copies" in told
    signins = Signins(re.search(r"run (load-[0-9a-f]{8})", told)[1], 1, "", {})
    signins.fates = bytearray([PUBLISHED] * 251)  # as if one more had been answered
    signins.fates[7], signins.fates[8] = UNKNOWN, REFUSED
    client = bigquery_tables.client(PROJECT, up.environment["BIGQUERY_EMULATOR_HOST"])
    copy = {"userid": "u", "date": datetime.now(UTC).isoformat(), "event_id": signins.id_of(3)}
    assert client.insert_rows_json(f"{PROJECT}.user_signin.signins", [copy], timeout=30) == []
    client.close()
    settings = Settings(
        _env_file=None,
        project=PROJECT,
        bigquery_emulator_host=up.environment["BIGQUERY_EMULATOR_HOST"],
    )
    table = Table(settings, signins, datetime.now(UTC) - timedelta(minutes=5))
    found = table.await_all(0.0, lambda _: None)
    table.close()
    assert (found.expected, found.rows, found.lost, found.copies) == (249, 251, 1, 1)
    assert (found.unanswered, found.strange) == (1, 1)
    assert found.lost_ids == [signins.id_of(250)]


def test_a_fault_from_the_command_line_sends_sign_ins_to_the_outbox_until_it_is_cleared(up):
    assert signin("local", "faults", "pubsub", "--code", "UNAVAILABLE", cwd=up.directory).returncode == 0
    spooled = json.loads(signin("emit", cwd=up.directory).stdout)
    assert (spooled["status"], spooled["message_id"]) == ("spooled", None)
    assert signin("local", "faults", "pubsub", "--clear", cwd=up.directory).returncode == 0
    until(lambda: json.loads(signin("emit", cwd=up.directory).stdout)["status"] == "published")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pubsub", "--method", "Publsh", "--code", "UNAVAILABLE"], "Publsh is not a method here"),
        (["pubsub", "--hide", "job"], "faults of the local Dataflow only"),
        (["dataflow", "--state", "SLEEPING"], "SLEEPING is neither a state"),
        (["bigquery", "--code", "UNAVAILABLE"], "UNAVAILABLE is not an HTTP error status"),
        (["bigquery", "--method", "Publish", "--code", "503"], "Publish is not a method here"),
    ],
)
def test_a_fault_that_a_server_does_not_have_is_refused_in_its_words(up, arguments, said):
    refused = signin("local", "faults", *arguments, cwd=up.directory)
    assert refused.returncode == 1
    assert said in refused.stderr


def test_a_command_on_another_database_than_the_running_service_says_so(up, tmp_path):
    other = f"sqlite:///{tmp_path}/other.db"
    assert "is SIGNIN_DATABASE_URL the same?" not in signin("keys", "list", cwd=up.directory).stderr
    said = signin("keys", "list", cwd=up.directory, SIGNIN_DATABASE_URL=other).stderr
    assert f"{up.directory}/.signin/signin.db, and this command works on" in said
    assert f"{tmp_path}/other.db: is SIGNIN_DATABASE_URL the same?" in said


def test_faults_of_dataflow_and_bigquery_hit_what_they_name_until_they_are_cleared(up):
    def fault(*arguments):
        done = signin("local", "faults", *arguments, cwd=up.directory)
        assert done.returncode == 0, done.stderr
        return done.stdout

    told = fault("bigquery", "--method", "datasets", "--code", "503", "--times", "1")
    assert "calls of datasets: code=503, times=1" in told
    datasets = f"{up.environment['BIGQUERY_EMULATOR_HOST']}/bigquery/v2/projects/signin-local/datasets"
    assert [httpx.get(datasets, timeout=10).status_code for _ in range(2)] == [503, 200]
    fault("dataflow", "--method", "ListJobs", "--hide", "location", "--skip", "1")
    fault("dataflow", "--clear")
    assert "no faults" in fault("bigquery", "--clear")


def test_the_connections_of_a_running_stack_are_tried_and_what_is_wrong_is_told(up):
    def check(*arguments, **environment):
        done = signin("config", "check", *arguments, cwd=up.directory, **environment)
        (line,) = done.stderr.splitlines()
        assert line.startswith("Using the local stack that runs on "), done.stderr
        return done

    told = json.loads(check("--json").stdout)
    assert told["ok"]
    assert {each["status"] for each in told["checks"]} == {"ok", "skipped"}
    assert {each["check"] for each in told["checks"] if each["status"] == "ok"} > {"table", "dead letters"}
    for code, status, words in (
        ("403", "failed", "roles/bigquery.dataViewer"),
        ("404", "warning", "no such"),
    ):
        up.bigquery_fault(Fault(method="tables", code=code))
        done = check()
        assert done.returncode == (1 if status == "failed" else 0)
        assert f"{status:8}table" in done.stdout
        assert words in done.stdout
    up.bigquery_fault()


def test_a_sign_in_that_breaks_the_contract_is_refused_with_its_code(up):
    refused = signin("emit", "--date", "yesterday", cwd=up.directory)
    assert refused.returncode == 1
    assert "422 date_invalid" in refused.stderr


def test_a_port_that_is_taken_is_named(up, tmp_path):
    port = up.url.rsplit(":", 1)[1]
    done = signin(
        "up",
        "--port",
        port,
        "--pubsub-port",
        "0",
        "--dataflow-port",
        "0",
        "--bigquery-port",
        "0",
        cwd=tmp_path,
    )
    assert done.returncode != 0
    assert f"127.0.0.1:{port} cannot be listened on" in done.stderr


def test_a_second_up_on_the_same_directory_is_refused_and_names_the_first(up):
    done = signin("up", "--port", "0", cwd=up.directory)
    assert done.returncode == 1
    assert "in use by another stack" in done.stderr


def test_serve_migrates_the_embedded_database_starts_and_ends_with_code_0_on_sigterm(up, tmp_path):
    points = {name: value for name, value in up.environment.items() if name.endswith("_EMULATOR_HOST")}
    serve = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "service",
            "serve",
            "--announce",
            "--port",
            "0",
            "--debug-log",
            "debugging.log",
        ],
        cwd=tmp_path,
        env=clean_environment() | points,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert json.loads(serve.stdout.readline())["ready"].startswith("http://127.0.0.1:")
        assert (tmp_path / ".signin" / "signin.db").exists()
        serve.send_signal(signal.SIGTERM)
        assert serve.wait(timeout=30) == 0
    finally:
        serve.kill()
        serve.stdout.close()
    assert "DEBUG" in (tmp_path / "debugging.log").read_text()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_while_everything_starts_leaves_nothing_behind(tmp_path):
    mark = Up(tmp_path)
    with (tmp_path / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "up", "--port", "0", "--pubsub-port", "0"],
            cwd=tmp_path,
            env=clean_environment() | {"MARK_OF_SIGNIN_TESTS": mark.mark},
            stdout=log,
            stderr=log,
        )
        until(lambda: len(mark.left()) >= 2)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=40)
    until(lambda: not mark.left(), 5)


def test_the_demo_accounts_for_every_message_and_ends_with_code_0(tmp_path):
    done = signin("demo", "--events", "50", cwd=tmp_path, timeout=180)
    assert done.returncode == 0, done.stderr
    for words in (
        "50 sign-ins became 50 rows",
        f"{len(BROKEN_MESSAGES)} dead letters; nothing was lost",
        "is DRAINED",
        "events/s",
        "PUBSUB_EMULATOR_HOST=",
        *BROKEN_MESSAGES.values(),
    ):
        assert words in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_load_that_is_cut_off_tells_what_became_of_it(up):
    def published():
        return re.search(r'published"\} ([0-9.]+)', httpx.get(up.url + "/metrics", timeout=30).text)[1]

    before = published()
    sending = subprocess.Popen(
        [sys.executable, "-m", "service", "emit", "--count", "1000000", "--rate", "50"],
        cwd=up.directory,
        env=clean_environment() | {"COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: published() != before)
    sending.send_signal(signal.SIGINT)
    told, complaint = sending.communicate(timeout=30)
    assert sending.returncode == 130
    assert int(re.match(r"(\d+) accepted in", told)[1]) > 0
    assert "interrupted" in complaint
