"""The local stack that commands find by themselves: used where nothing speaks against it, else left alone."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from contextlib import contextmanager

import pytest
import typer
from typer.testing import CliRunner

from service.cli import app
from service.cli.client import running_settings, service_url
from service.config import masked
from service.local.running import take
from tests.publishing import message, outbox_events, publishing
from tests.running import clean_environment
from tests.serving import NOBODY, pubsub_with_topic, settings_for

STACK = {
    "SIGNIN_PROJECT": "signin-local",
    "PUBSUB_EMULATOR_HOST": "127.0.0.1:2",
    "DATAFLOW_EMULATOR_HOST": "127.0.0.1:3",
    "BIGQUERY_EMULATOR_HOST": "http://127.0.0.1:4",
    "SIGNIN_MONITORING_ENDPOINT": "http://127.0.0.1:5",
    "SIGNIN_URL": "http://127.0.0.1:6",
}
OTHER = "sqlite:////other/signin.db"


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """The working directory, in an environment that points nowhere and has no credentials."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)
    for name in ("HOME", "CLOUDSDK_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@contextmanager
def running(directory, database="", **environment):
    """What other terminals see of a stack that runs on the directory's `.signin`."""
    data_dir = directory / ".signin"
    data_dir.mkdir(exist_ok=True)
    ours = settings_for(data_dir, database_url=database)
    record = {"pid": os.getpid(), "environment": STACK | environment}
    (data_dir / "stack.json").write_text(json.dumps(record | {"database": masked(ours.async_database_url)}))
    with (data_dir / "stack.lock").open("w") as lock:
        assert take(lock, fcntl.LOCK_EX)
        yield


def signin(*arguments, exit_code=0):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == exit_code, result.output
    return result


def test_a_stack_is_used_where_nothing_else_is_named_and_that_is_told(directory, capsys):
    with running(directory):
        settings = running_settings()
    assert settings.pubsub_emulator_host == STACK["PUBSUB_EMULATOR_HOST"]
    assert settings.bigquery_emulator_host == STACK["BIGQUERY_EMULATOR_HOST"]
    told = capsys.readouterr().err
    assert f"Using the local stack that runs on {directory}/.signin, project signin-local." in told


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SIGNIN_PROJECT", "my-prod-project"),
        ("PUBSUB_EMULATOR_HOST", NOBODY),
        ("DATAFLOW_EMULATOR_HOST", NOBODY),
        ("BIGQUERY_EMULATOR_HOST", f"http://{NOBODY}"),
        ("PUBSUB_EMULATOR_HOST", ""),
        ("SIGNIN_MONITORING_ENDPOINT", "https://monitoring.googleapis.com"),
        ("SIGNIN_PUBSUB_ENDPOINT", "us-central1-pubsub.googleapis.com:443"),
        ("SIGNIN_DATAFLOW_ENDPOINT", "dataflow.googleapis.com:443"),
        ("SIGNIN_DATABASE_URL", OTHER),
    ],
)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_a_setting_that_names_another_deployment_leaves_the_stack_alone(
    directory, monkeypatch, capsys, variable, value, place
):
    if place == "environment":
        monkeypatch.setenv(variable, value)
    else:
        (directory / ".env").write_text(f"{variable}={value}\n")
    with running(directory):
        settings = running_settings()
    assert not set(STACK.values()) & {
        settings.pubsub_emulator_host,
        settings.dataflow_emulator_host,
        settings.bigquery_emulator_host,
        settings.monitoring_endpoint,
    }
    assert f"is left alone: {variable} names another deployment." in capsys.readouterr().err


def test_a_database_that_a_secret_file_names_leaves_the_stack_alone(directory, monkeypatch):
    (directory / "url").write_text(OTHER)
    monkeypatch.setenv("SIGNIN_DATABASE_URL_FILE", "url")
    with running(directory):
        assert running_settings().pubsub_emulator_host == ""
    with running(directory, OTHER):
        assert running_settings().pubsub_emulator_host == STACK["PUBSUB_EMULATOR_HOST"]
    unreadable = "sqlite:////a@b.db"  # shown as *** alone, and so may any other be
    (directory / "url").write_text(unreadable)
    with running(directory, unreadable):
        assert running_settings().pubsub_emulator_host == ""


def test_settings_that_say_what_the_stack_says_and_names_within_a_deployment_leave_it_in_use(
    directory, monkeypatch
):
    for name in STACK.keys() - {"SIGNIN_URL", "BIGQUERY_EMULATOR_HOST"}:
        monkeypatch.setenv(name, STACK[name])
    monkeypatch.setenv("SIGNIN_REGION", "europe-west1")
    monkeypatch.setenv("SIGNIN_TOPIC", "another-topic")
    with running(directory):
        assert running_settings().bigquery_emulator_host == STACK["BIGQUERY_EMULATOR_HOST"]


def test_a_value_that_was_set_is_shown_as_set_and_not_as_the_stacks(directory, monkeypatch):
    monkeypatch.setenv("SIGNIN_PROJECT", STACK["SIGNIN_PROJECT"])
    with running(directory):
        shown = json.loads(signin("config", "show", "--json").stdout)
    origins = {row["variable"]: row["origin"] for row in shown}
    assert origins["SIGNIN_PROJECT"] == "environment"
    assert origins["PUBSUB_EMULATOR_HOST"] == "the local stack that runs here"


def test_the_settings_that_are_checked_and_shown_are_those_of_the_named_project(directory, monkeypatch):
    monkeypatch.setenv("SIGNIN_PROJECT", "some-project")
    with running(directory):
        shown = signin("config", "show", "--json")
        checked = signin("config", "check", "--json", "--deadline", "0.2", exit_code=1)
    rows = {row["variable"]: row["value"] for row in json.loads(shown.stdout)}
    assert (rows["SIGNIN_PROJECT"], rows["PUBSUB_EMULATOR_HOST"]) == ("some-project", "")
    targets = {each["check"]: each["target"] for each in json.loads(checked.stdout)["checks"]}
    assert targets["topic"] == "projects/some-project/topics/topic-user-signin"


@pytest.mark.parametrize("words", [["tail"], ["rows"], ["local", "faults", "pubsub", "--clear"]])
def test_commands_that_look_at_the_stack_say_why_they_do_not(directory, monkeypatch, words):
    monkeypatch.setenv("SIGNIN_DATABASE_URL", OTHER)
    with running(directory):
        told = signin(*words, exit_code=1).stderr
    assert "is left alone: SIGNIN_DATABASE_URL names another deployment" in told
    assert "no local stack is used" in told


def test_the_service_of_a_stack_is_not_called_in_the_name_of_another_deployment(
    directory, monkeypatch, capsys
):
    with running(directory):
        assert service_url(None) == STACK["SIGNIN_URL"]
        monkeypatch.setenv("SIGNIN_DATABASE_URL", OTHER)
        assert service_url(None) == STACK["SIGNIN_URL"]  # it has its own
        monkeypatch.setenv("SIGNIN_PROJECT", "my-prod-project")
        assert service_url(None) == "http://127.0.0.1:8080"
        assert "is left alone" in capsys.readouterr().err
        assert service_url("signin.example") == "http://signin.example"
    with running(directory, SIGNIN_URL="http://127.0.0.1:8080"), pytest.raises(typer.Exit) as ended:
        service_url(None)
    assert ended.value.exit_code == 2
    assert "say --url or SIGNIN_URL" in capsys.readouterr().err


async def in_outbox(settings, *messages):
    """Spools the messages and returns the ids of all that wait then."""
    async with publishing(settings) as world:
        if messages:
            await world.outbox.spool(messages)
        return [row["event_id"] for row in await outbox_events(world.outbox)]


@pytest.mark.parametrize(
    ("project", "code", "words"),
    [
        ("my-prod-project", 2, "gcloud auth application-default login"),  # as far as it goes here
        ("", 2, "say by SIGNIN_PROJECT or PUBSUB_EMULATOR_HOST where its events belong"),
    ],
)
async def test_the_outbox_of_another_deployment_is_never_flushed_into_the_stack(
    directory, database_url, monkeypatch, project, code, words
):
    monkeypatch.setenv("SIGNIN_DATABASE_URL", database_url)
    if project:
        monkeypatch.setenv("SIGNIN_PROJECT", project)
    async with pubsub_with_topic(directory, project="signin-local") as (server, _, reader):
        production = settings_for(directory, database_url=database_url)
        await in_outbox(production, message(1))
        with running(directory, PUBSUB_EMULATOR_HOST=server.address):
            told = await asyncio.to_thread(signin, "outbox", "flush", exit_code=code)
        assert await in_outbox(production) == ["event-1"]
        assert await reader.pull(1) == []
    assert words in told.stderr


async def test_the_outbox_of_the_stacks_own_service_is_flushed_into_the_stack(directory):
    own = settings_for(directory / ".signin")
    async with pubsub_with_topic(directory, project="signin-local") as (server, _, reader):
        with running(directory, PUBSUB_EMULATOR_HOST=server.address):
            await in_outbox(own, message(1))
            told = await asyncio.to_thread(signin, "outbox", "flush")
        assert [each.attributes["event_id"] for each in await reader.pull(1)] == ["event-1"]
    assert "1 events were published" in told.stdout
    assert "Using the local stack" in told.stderr


@pytest.mark.parametrize("words", [["flush"], ["import", "nothing.ndjson"], ["release"]])
def test_no_events_are_moved_where_database_and_topic_are_not_of_one_deployment(
    directory, monkeypatch, words
):
    def refused():
        return signin("outbox", *words, exit_code=2).stderr

    with running(directory, OTHER):  # nothing is said, and the service has another database
        assert "set SIGNIN_DATABASE_URL to the same" in refused()
    with running(directory):
        monkeypatch.setenv("SIGNIN_PROJECT", "my-prod-project")
        told = refused()
        assert "that of the service that runs here, and SIGNIN_PROJECT names another deployment" in told
        monkeypatch.delenv("SIGNIN_PROJECT")
        monkeypatch.setenv("SIGNIN_DATABASE_URL", OTHER)
        assert "where its events belong" in refused()
