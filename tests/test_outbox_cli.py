"""`signin outbox`: what an operator sees and does with the events that wait."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.local.faults import Fault
from tests.publishing import message, outbox_events, publishing
from tests.serving import NOBODY, pubsub_with_topic, settings_for


@pytest.fixture
def signin(tmp_path, monkeypatch):
    """Runs the command in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("PUBSUB_EMULATOR_HOST", "DATAFLOW_EMULATOR_HOST"):
        monkeypatch.setenv(name, NOBODY)

    def run(*arguments, exit_code=0):
        result = CliRunner().invoke(app, ["outbox", *arguments])
        assert result.exit_code == exit_code, result.output
        return result

    return run


@pytest.fixture
def settings(tmp_path, database_url, monkeypatch):
    monkeypatch.setenv("SIGNIN_DATABASE_URL", database_url)
    return settings_for(tmp_path, NOBODY, database_url=database_url)


def in_outbox(settings, *messages):
    """Spools the messages and returns what the outbox holds then."""

    async def spool():
        async with publishing(settings) as world:
            if messages:
                await world.outbox.spool(messages)
            return await outbox_events(world.outbox)

    return asyncio.run(spool())


def audits(result):
    """The records of the audit log on standard error, each without its actor, who is the user."""
    found = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    assert {(each["severity"], each["logger"]) for each in found} <= {("INFO", "service.audit")}
    assert {each["audit"].pop("actor") for each in found} <= {f"cli:{getpass.getuser()}"}
    return [each["audit"] for each in found]


def test_who_changed_the_outbox_is_in_the_audit_log_and_who_looked_is_not(signin, settings, tmp_path):
    in_outbox(settings, message(1))
    assert audits(signin("status")) == []
    assert audits(signin("export", "events.ndjson")) == []
    done = {"outcome": "done", "events": 1}
    assert audits(signin("import", "events.ndjson")) == [{"act": "outbox import"} | done]
    assert audits(signin("release")) == [{"act": "outbox release"} | done | {"events": 0}]
    one = signin("release", "--event-id", "event-1")
    assert audits(one) == [{"act": "outbox release", "event_id": "event-1"} | done | {"events": 0}]
    failed = {"outcome": "failed"}
    assert audits(signin("flush", exit_code=1)) == [{"act": "outbox flush"} | failed]
    (tmp_path / "bad.ndjson").write_text((tmp_path / "events.ndjson").read_text() + "nonsense\n")
    bad = signin("import", "bad.ndjson", exit_code=1)
    assert audits(bad) == [{"act": "outbox import"} | failed | {"events": 0}]
    assert audits(signin("import", "nowhere", exit_code=1)) == []


def test_a_level_without_such_records_keeps_them_from_standard_error_too(signin, settings, monkeypatch):
    monkeypatch.setenv("SIGNIN_LOG_LEVEL", "WARNING")
    assert audits(signin("release")) == []


def test_the_status_says_how_much_waits(signin, settings):
    in_outbox(settings, message(1), message(2))
    assert "999998" in signin("status").stdout


def test_an_export_can_be_imported_elsewhere(signin, settings, tmp_path, create_database, monkeypatch):
    in_outbox(settings, message(1), (b"\xff\x00", {"event_id": "2", "a": "é"}))
    signin("export", "events.ndjson")
    lines = [json.loads(line) for line in (tmp_path / "events.ndjson").read_text().splitlines()]
    assert [(line["event_id"], line["attributes"]) for line in lines] == [
        ("event-1", {"event_id": "event-1"}),
        ("2", {"event_id": "2", "a": "é"}),
    ]
    other = create_database(True)
    monkeypatch.setenv("SIGNIN_DATABASE_URL", other)
    assert "2 events" in signin("import", "events.ndjson").stderr
    found = in_outbox(settings.model_copy(update={"database_url": other}))
    assert [(row["event_id"], row["data"]) for row in found] == [("event-1", b'{"n":1}'), ("2", b"\xff\x00")]
    assert len(in_outbox(settings)) == 2


def test_a_line_that_is_no_event_ends_the_import_with_its_number(signin, settings, tmp_path):
    (tmp_path / "bad.ndjson").write_text('{"data": "eA==", "attributes": {}}\nnonsense\n')
    result = signin("import", "bad.ndjson", exit_code=1)
    assert "line 2" in result.stderr
    assert "The first 0 events" in result.stderr
    assert in_outbox(settings) == []


def test_an_absent_file_is_told_in_one_sentence(signin, settings):
    assert "nowhere: No such file" in signin("import", "nowhere", exit_code=1).stderr


def on_output(descriptor, *arguments):
    """The exit code and the complaints of a command whose standard output is the open file."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "service", *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(descriptor)
    return done.returncode, done.stderr


def test_an_export_whose_reader_has_gone_ends_quietly(signin, settings):
    in_outbox(settings, message(1))
    reading, writing = os.pipe()
    os.close(reading)
    assert on_output(writing, "outbox", "export") == (0, "")


@pytest.mark.parametrize(
    "arguments", [["outbox", "export"], ["outbox", "status"], ["keys", "list", "--json"], ["--version"]]
)
def test_a_full_disk_under_the_output_is_told_in_one_sentence(signin, settings, arguments):
    in_outbox(settings, message(1))
    full = os.open("/dev/full", os.O_WRONLY)
    assert on_output(full, *arguments) == (1, "error: No space left on device\n")


def test_a_database_that_is_away_is_told_in_one_sentence(signin, monkeypatch):
    monkeypatch.setenv("SIGNIN_DATABASE_URL", f"postgresql://nobody@{NOBODY}/nothing")
    assert "did not answer" in signin("status", exit_code=1).stderr


def test_a_flush_without_pubsub_says_that_everything_still_waits(signin, settings):
    in_outbox(settings, message(1))
    assert "still waits" in signin("flush", exit_code=1).stderr
    assert [row["claimed_by"] for row in in_outbox(settings)] == [None]


async def test_a_flush_into_a_topic_that_is_closed_says_why_and_that_everything_still_waits(
    signin, settings, tmp_path, monkeypatch
):
    async with pubsub_with_topic(tmp_path) as (server, _, _reader):
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        await asyncio.to_thread(in_outbox, settings, message(1))
        server.faults.set([Fault(method="Publish", code="PERMISSION_DENIED")])
        told = (await asyncio.to_thread(signin, "flush", exit_code=1)).stderr
        assert "may not publish to the topic (PERMISSION_DENIED)" in " ".join(told.split())
        assert "still waits" in told
        assert [row["parked_at"] for row in await asyncio.to_thread(in_outbox, settings)] == [None]


async def test_parked_events_are_shown_released_and_flushed(signin, settings, tmp_path, monkeypatch):
    async with pubsub_with_topic(tmp_path) as (server, _, reader):
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        await asyncio.to_thread(in_outbox, settings, *(message(i) for i in range(3)))
        server.faults.set([Fault(method="Publish", code="INVALID_ARGUMENT")])
        assert "0 events were published" in (await asyncio.to_thread(signin, "flush")).stdout
        shown = await asyncio.to_thread(signin, "status")
        assert "does not fit the topic" in shown.stdout
        server.faults.set([])
        assert "1 events" in (await asyncio.to_thread(signin, "release", "--event-id", "event-2")).stdout
        assert "2 events" in (await asyncio.to_thread(signin, "release")).stdout
        assert "3 events were published" in (await asyncio.to_thread(signin, "flush")).stdout
        assert {each.attributes["event_id"] for each in await reader.pull(3)} == {
            f"event-{i}" for i in range(3)
        }
