"""`signin dead-letters`: what an operator sees and does, through the service."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from service.cli import app
from tests.bigquery_servers import local_bigquery
from tests.dead_letter_world import LetterTables, letter
from tests.pubsub_topic import make_topic, pull_all
from tests.server_process import local_pubsub, service


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A service with three dead letters, and its URL."""
    directory = tmp_path_factory.mktemp("letters")
    with local_pubsub(directory) as pubsub, local_bigquery(directory) as bigquery:
        make_topic(pubsub.address)
        tables = LetterTables(bigquery, "user_signin")
        tables.add(letter(1), letter(2, event_id="e-2", payload=b"\x1b[2J"), letter(3, reason="invalid_utf8"))
        tables.close()
        with service(directory, pubsub.address, BIGQUERY_EMULATOR_HOST=bigquery) as server:
            yield pubsub, f"http://127.0.0.1:{server.port}"


@pytest.fixture
def signin(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("SIGNIN_URL", world[1])

    def run(*arguments, exit_code=0):
        result = CliRunner().invoke(app, ["dead-letters", *arguments])
        assert result.exit_code == exit_code, result.output
        return result

    return run


def test_letters_are_shown_with_their_number_by_reason(signin):
    shown = signin("list", "--since", "2026-01-01").stdout
    assert re.search(r"decode\W+invalid_json\W+2\b", shown)
    assert re.search(r"decode\W+invalid_utf8\W+1\b", shown)
    assert "e-2" in shown
    assert "\x1b[2J" not in shown
    assert "invalid_json" not in signin("list", "--reason", "invalid_utf8").stdout
    assert "e-2" not in signin("list", "--since", "1h").stdout


def test_a_dry_run_counts_and_a_replay_publishes_what_was_counted(signin, world):
    dry = signin("replay", "--reason", "invalid_json", "--dry-run").stdout
    assert "2 would be replayed" in dry
    assert "2 replayed" in signin("replay", "--reason", "invalid_json", "--until", "1s").stdout
    rest = signin("replay").stdout
    assert "1 replayed" in rest
    assert "2 left out: replayed before, or a copy" in rest
    assert sorted(message.data for message in pull_all(world[0].address)) == [b"\x1b[2J", b"{1", b"{3"]
    shown = signin("replays").stdout
    assert shown.count("DONE") == 3
    replay_id = rest.split()[0]
    assert "DONE" in signin("cancel", replay_id).stdout  # it had ended


def test_what_means_nothing_is_told_in_a_sentence(signin):
    assert "neither an RFC 3339 time" in signin("list", "--since", "yesterday", exit_code=2).stderr
    assert "invalid_request" in signin("list", "--stage", "all", exit_code=1).stderr
    assert "replay_not_found" in signin("cancel", "nothing", exit_code=1).stderr
