"""The `signin` command where nothing runs: its settings, its help, and the sentence for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.serving import NOBODY
from tests.signin_command import signin

EMULATORS = {"PUBSUB_EMULATOR_HOST": NOBODY, "DATAFLOW_EMULATOR_HOST": NOBODY}

pytestmark = pytest.mark.timeout(240)


def test_the_settings_in_force_are_shown_with_their_origin_and_without_secrets(tmp_path):
    (tmp_path / "url").write_text("postgresql://u:hush-hush@db.example/signin\n")
    (tmp_path / ".env").write_text("SIGNIN_REGION=europe-west1\n")
    given = {"SIGNIN_PORT": "9000", "SIGNIN_DATABASE_URL_FILE": str(tmp_path / "url")}
    shown = signin("config", "show", "--json", cwd=tmp_path, **given).stdout
    rows = {row["variable"]: (row["value"], row["origin"]) for row in json.loads(shown)}
    assert rows["SIGNIN_PORT"] == (9000, "environment")
    assert rows["SIGNIN_REGION"] == ("europe-west1", ".env")
    assert rows["SIGNIN_TOPIC"] == ("topic-user-signin", "default")
    assert rows["SIGNIN_DATABASE_URL"] == ("postgresql://***@db.example/signin", str(tmp_path / "url"))
    assert "hush" not in shown


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "words"),
    [
        (["serve"], {}, 2, "SIGNIN_PROJECT is not set"),
        (["serve"], {"SIGNIN_PROJECT": "my-project"}, 2, "gcloud auth application-default login"),
        (["serve", "--host", "0.0.0.0"], {}, 2, "SIGNIN_ALLOW_UNAUTHENTICATED_ACCESS=true"),
        (["up"], {"SIGNIN_HOST": "0.0.0.0"}, 2, "SIGNIN_ALLOW_UNAUTHENTICATED_ACCESS=true"),
        (["serve"], {"SIGNIN_PORT": "many"}, 2, "SIGNIN_PORT must be a whole number"),
        (["config", "check"], {"SIGNIN_PORJECT": "my-project"}, 2, "Did you mean SIGNIN_PROJECT?"),
        (["migrate"], {"SIGNIN_DATABASE_URL": "mysql://somewhere"}, 2, "sqlite:// or postgresql://"),
        (["migrate"], {"SIGNIN_DATA_DIR": "/dev/null/x"}, 2, "/dev/null/x cannot be made: Not a directory"),
        (["serve"], EMULATORS | {"SIGNIN_DATA_DIR": "/dev/null"}, 2, "/dev/null cannot be made: File exists"),
        (["keys", "list"], {"SIGNIN_DATA_DIR": "/dev/null"}, 2, "/dev/null cannot be made: File exists"),
        (["emit"], {"SIGNIN_URL": "http://127.0.0.1:1"}, 1, "signin up"),
        (["jobs", "list", "--url", "http://127.0.0.1:1"], {}, 1, "signin up"),
        (["jobs", "launch", "--parameter", "nothing"], {}, 2, "name=value"),
        (["local", "faults", "pubsub", "--clear"], {}, 1, "no local stack is used here"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path, arguments, environment, code, words):
    done = signin(*arguments, cwd=tmp_path, **environment)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("left", "code", "words"),
    [
        (["stack.lock"], 1, "the stack of {} does not run; asking http://127.0.0.1:1\n"),
        (["stack.lock", "stack.json"], 2, "the stack of {} does not run any more. Start it with"),
    ],
)
def test_a_command_does_not_silently_take_another_service_for_that_of_its_directory(
    tmp_path, left, code, words
):
    directory = tmp_path / ".signin"
    directory.mkdir()
    for name in left:
        (directory / name).touch()
    done = signin("jobs", "list", cwd=tmp_path, SIGNIN_PORT="1")
    assert (done.returncode, words.format(directory) in done.stderr) == (code, True), done.stderr
    elsewhere = signin("jobs", "list", "--url", "http://127.0.0.1:1", cwd=tmp_path)
    assert (elsewhere.returncode, "the stack of" in elsewhere.stderr) == (1, False)


def test_help_is_quick_enough_to_be_asked_for(tmp_path):
    program = "import sys, service.cli; print({'apache_beam', 'fastapi', 'sqlmodel'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "set()"
