"""`signin dead-letters`: what an operator sees and does, through the service."""

from __future__ import annotations

import base64
import json
import re

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.cli.dead_letters import JOB_REASONS
from tests.bigquery_servers import local_bigquery
from tests.dead_letter_world import LetterTables, letter
from tests.pubsub_topic import make_topic, pull_all
from tests.server_process import REPOSITORY, local_pubsub, service

LONG = b"\xff" * 500


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A service with three dead letters, and its URL."""
    directory = tmp_path_factory.mktemp("letters")
    with local_pubsub(directory) as pubsub, local_bigquery(directory) as bigquery:
        make_topic(pubsub.address)
        tables = LetterTables(bigquery, "user_signin")
        tables.add(
            letter(1),
            letter(2, event_id="e-2", payload=b"\x1b[2J"),
            letter(3, reason="invalid_utf8", payload=LONG),
        )
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
    assert sorted(message.data for message in pull_all(world[0].address)) == [b"\x1b[2J", b"{1", LONG]
    shown = signin("replays").stdout
    assert shown.count("DONE") == 3
    replay_id = rest.split()[0]
    assert "DONE" in signin("cancel", replay_id).stdout  # it had ended


def test_json_has_all_that_the_service_says(signin):
    page = json.loads(signin("list", "--limit", "1", "--json").stdout)
    (newest,) = page["dead_letters"]
    assert base64.b64decode(newest["payload"]) == LONG
    assert {each["reason"]: each["count"] for each in page["counts"]}["invalid_json"] == 2
    older = signin("list", "--limit", "2", "--page-token", page["next_page_token"], "--json").stdout
    assert [each["event_id"] for each in json.loads(older)["dead_letters"]] == ["e-2", None]
    assert "e-2" in signin("list", "--page-token", page["next_page_token"]).stdout
    dry = json.loads(signin("replay", "--dry-run", "--json").stdout)
    assert (dry["state"], dry["dry_run"], dry["letters"]) == ("DONE", True, 3)
    assert dry["id"] in {each["id"] for each in json.loads(signin("replays", "--json").stdout)["replays"]}
    assert json.loads(signin("cancel", dry["id"], "--json").stdout) == dry


def test_a_replay_that_ends_at_its_bound_says_what_it_did_not_look_at(signin):
    shown = signin("replay", "--again", "--dry-run", "--most-letters", "2").stdout
    assert "2 would be replayed" in shown
    assert "It ended at most_letters (2); letters not looked at: 1." in shown
    assert "not looked at" not in signin("replay", "--again", "--dry-run", "--most-letters", "3").stdout


def test_a_misspelt_reason_is_told_with_the_one_that_is_like_it(signin):
    for words in (("list",), ("replay", "--dry-run")):
        assert "Did you mean userid_missing?" in signin(*words, "--reason", "userid_mising").stderr
    assert "Known are empty_body, " in signin("list", "--reason", "q").stderr
    assert "no reason that this release knows" not in signin("list", "--reason", "row_refused").stderr


def test_the_reasons_that_are_known_are_all_that_the_jobs_write():
    written = re.compile(
        r'(?:reason=|Unreadable\(path, number, |refuse\(messages\[index\], "write", )"(\w+)"'
    )
    sources = [
        path.read_text() for name in ("transforms", "pipeline") for path in (REPOSITORY / name).rglob("*.py")
    ]
    assert {reason for text in sources for reason in written.findall(text)} == set(JOB_REASONS)


def test_what_means_nothing_is_told_in_a_sentence(signin):
    assert "neither an RFC 3339 time" in signin("list", "--since", "yesterday", exit_code=2).stderr
    assert "invalid_request" in signin("list", "--stage", "all", exit_code=1).stderr
    assert "replay_not_found" in signin("cancel", "nothing", exit_code=1).stderr
