"""`signin keys`, and the key that the other commands send."""

from __future__ import annotations

import asyncio
import getpass
import json

import pytest
from typer.testing import CliRunner

from service.auth import key_store, keys
from service.cli import app
from service.config import Settings
from service.db import Database
from tests.serving import NOBODY


@pytest.fixture
def signin(tmp_path, monkeypatch):
    """Runs the command in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("PUBSUB_EMULATOR_HOST", "DATAFLOW_EMULATOR_HOST"):
        monkeypatch.setenv(name, NOBODY)

    def run(*arguments, exit_code=0):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == exit_code, result.output
        return result

    return run


@pytest.fixture
def stored(database_url, monkeypatch):
    """The rows of the keys, by their ids."""
    monkeypatch.setenv("SIGNIN_DATABASE_URL", database_url)

    async def read():
        database = Database(Settings(_env_file=None, database_url=database_url))
        try:
            return {row.id: row for row in await key_store.everything(database)}
        finally:
            await database.close()

    return lambda: asyncio.run(read())


def test_a_key_is_made_listed_rotated_and_revoked(signin, stored):
    made = json.loads(signin("keys", "create", "backend", "--scope", "events:write", "--json").stdout)
    row = stored()[made["id"]]
    assert keys.is_secret_of(row, keys.parse(made["key"].encode()).secret)
    assert (row.name, row.scopes, (row.expires_at - row.created_at).days) == ("backend", "events:write", 90)

    again = json.loads(
        signin("keys", "rotate", made["id"], "--overlap", "1h", "--expires-in", "never", "--json").stdout
    )
    assert (again["name"], again["scopes"], again["replaces"]) == ("backend", ["events:write"], made["id"])
    assert again["expires_at"] is None
    assert (stored()[made["id"]].expires_at - stored()[again["id"]].created_at).total_seconds() == 3600

    listed = {each["id"]: each for each in json.loads(signin("keys", "list", "--json").stdout)}
    assert {each["state"] for each in listed.values()} == {"good"}
    assert json.loads(signin("keys", "revoke", again["id"], "--json").stdout)["state"] == "revoked"
    shown = signin("keys", "list").stdout
    assert "revoked" in shown
    for text in (shown, json.dumps(listed)):
        assert made["key"][-43:] not in text
    signin("keys", "rotate", again["id"], exit_code=1)

    told = json.loads(signin("keys", "history", "--json").stdout)
    assert {(each["key_id"], each["kind"]) for each in told} == {
        (made["id"], "created"),
        (made["id"], "replaced"),
        (again["id"], "created"),
        (again["id"], "revoked"),
    }
    assert {each["actor"] for each in told} == {f"cli:{getpass.getuser()}"}
    assert "revoked" in signin("keys", "history", again["id"]).stdout
    assert made["id"] not in signin("keys", "history", again["id"]).stdout


@pytest.mark.parametrize(("lifetime", "hours"), [("12h", 12), ("90d", 90 * 24), ("never", None)])
def test_a_rotated_key_is_good_as_long_as_the_one_before_and_no_overlap_prolongs_that(
    signin, stored, lifetime, hours
):
    create = ["create", "ci", "--scope", "events:write", "--expires-in", lifetime]
    old = json.loads(signin("keys", *create, "--json").stdout)["id"]
    end_of_old = stored()[old].expires_at
    new = json.loads(signin("keys", "rotate", old, "--overlap", "24h", "--json").stdout)["id"]
    rows = stored()
    if hours is None:
        assert rows[new].expires_at is None
    else:
        assert (rows[new].expires_at - rows[new].created_at).total_seconds() == hours * 3600
        assert rows[old].expires_at <= end_of_old


def test_a_new_key_stands_alone_on_standard_output(signin, stored):
    result = signin("keys", "create", "ci", "--scope", "jobs:write,jobs:read", "--expires-in", "12h")
    assert keys.parse(result.stdout.strip().encode()).id in stored()
    assert "shown this once" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["create", "x", "--scope", "root"], 2, "no such scope"),
        (["create", "a b", "--scope", "admin"], 2, "is no name"),
        (["create", "x", "--scope", "admin", "--expires-in", "soon"], 2, "is no duration"),
        (["revoke", "0123"], 1, "there is no key 0123"),
        (["rotate", "0123"], 1, "there is no key 0123"),
        (["rotate", "0123", "--overlap", "never"], 2, "must end"),
        (["rotate", "0123", "--expires-in", "soon"], 2, "is no duration"),
    ],
)
def test_what_cannot_be_is_told_in_one_sentence(signin, stored, arguments, exit_code, words):
    assert words in signin("keys", *arguments, exit_code=exit_code).stderr
    assert stored() == {}


def test_the_embedded_database_is_made_for_the_first_key(signin, tmp_path):
    made = f"made a new database at {tmp_path}/.signin/signin.db"
    assert made in signin("keys", "create", "first", "--scope", "admin").stderr
    assert "made a new" not in signin("keys", "create", "second", "--scope", "admin").stderr
    assert "first" in signin("keys", "list").stdout
    assert "there is a key first" in signin("keys", "create", "first", "--scope", "admin", exit_code=1).stderr


@pytest.mark.parametrize("arguments", [["list"], ["history"], ["revoke", "0123"], ["rotate", "0123"]])
def test_a_look_makes_no_database_in_the_place_of_one_that_is_away(signin, tmp_path, arguments):
    assert "cannot be opened" in signin("keys", *arguments, exit_code=1).stderr
    assert not (tmp_path / ".signin" / "signin.db").exists()


def test_the_commands_send_the_key_of_the_environment_or_of_a_file(tmp_path, monkeypatch):
    from service.cli.client import credentials

    monkeypatch.delenv("SIGNIN_API_KEY", raising=False)
    assert credentials("http://127.0.0.1:8080") == {}
    (tmp_path / "key").write_text("signin_file\n")
    monkeypatch.setenv("SIGNIN_API_KEY_FILE", str(tmp_path / "key"))
    assert credentials("https://signin.example") == {"Authorization": "Bearer signin_file"}
    monkeypatch.setenv("SIGNIN_API_KEY", "signin_environment")
    monkeypatch.setenv("SIGNIN_API_KEY_FILE", "")
    assert credentials("http://[::1]:8080") == {"Authorization": "Bearer signin_environment"}
    monkeypatch.setenv("SIGNIN_SERVERLESS_TOKEN", "e30.e30.e30")
    both = {"Authorization": "Bearer signin_environment", "X-Serverless-Authorization": "Bearer e30.e30.e30"}
    assert credentials("https://signin.example") == both


SENT = ("SIGNIN_API_KEY", "SIGNIN_SERVERLESS_TOKEN")


@pytest.mark.parametrize("variable", SENT)
@pytest.mark.parametrize(
    ("key", "url", "words"),
    [
        ("signin_x", "http://signin.example", "is not https"),
        ("signin x\n y", "http://127.0.0.1:1", "characters"),
    ],
)
def test_a_key_is_not_sent_in_the_clear_nor_broken(signin, monkeypatch, key, url, words, variable):
    monkeypatch.setenv(variable, key)
    for command in (["jobs", "list"], ["emit", "--count", "1"]):
        told = signin(*command, "--url", url, exit_code=2).stderr
        assert words in told
        assert key not in told


@pytest.mark.parametrize("variable", SENT)
def test_a_key_and_a_file_with_a_key_at_once_are_refused(signin, monkeypatch, tmp_path, variable):
    (tmp_path / "key").write_text("signin_file\n")
    monkeypatch.setenv(f"{variable}_FILE", "key")
    monkeypatch.setenv(variable, "signin_environment")
    assert f"{variable} and {variable}_FILE are both set" in signin("jobs", "list", exit_code=2).stderr


@pytest.mark.parametrize("variable", SENT)
def test_a_missing_key_file_is_told_in_one_sentence(signin, monkeypatch, variable):
    monkeypatch.setenv(f"{variable}_FILE", "nowhere")
    assert "nowhere cannot be read" in signin("jobs", "list", exit_code=2).stderr
