"""The settings: where they come from, what is refused, and that no secret is ever shown."""

from __future__ import annotations

import json

import pytest

from service.config import Settings, load, variable_name
from service.config.complaints import sentences
from service.config.variables import KNOWN, SECRETS, is_foreign, is_secret
from tests.given_variables import (
    URL,
    complaints,
    given_variables,  # noqa: F401
)


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("SIGNIN_PUBLISH_LINGER", "Did you mean SIGNIN_PUBLISH_LINGER_SECONDS?"),
        ("SIGNIN_PUBLISH_LINGER_SECS", "Did you mean SIGNIN_PUBLISH_LINGER_SECONDS?"),
        ("SIGNIN_PORJECT", "Did you mean SIGNIN_PROJECT?"),
        ("signin_porject", "Did you mean SIGNIN_PROJECT?"),
        ("SIGNIN_DATABSE_URL_FILE", "Did you mean SIGNIN_DATABASE_URL_FILE?"),
        ("SIGNIN_PUBSUB_EMULATOR_HOST", "Did you mean PUBSUB_EMULATOR_HOST?"),
        ("SIGNIN_PORT_FILE", "only secrets are read from a file. Set SIGNIN_PORT."),
        ("SIGNIN_FLUX_CAPACITOR", "`signin config show` lists all there are."),
    ],
)
def test_an_unknown_variable_is_refused_with_a_hint(variables, tmp_path, variable, hint):
    variables(**{variable: "hush-hush"})
    [told] = complaints()
    assert told.startswith(f"{variable.upper()}: ")
    assert told.endswith(hint)
    assert "hush-hush" not in told


def test_an_unknown_variable_of_the_env_file_is_refused_and_those_of_others_are_not(variables, tmp_path):
    (tmp_path / ".env").write_text("SIGNIN_PROJEKT=my-project\nPROJEKT=other\n")
    assert complaints() == [
        "SIGNIN_PROJEKT: there is no such setting. Did you mean SIGNIN_PROJECT? (in .env)"
    ]


def test_what_the_command_line_and_jobs_read_is_known(variables):
    variables(SIGNIN_URL="http://h", SIGNIN_API_KEY="k", SIGNIN_API_KEY_FILE="f", SIGNIN_JOB_ID="j")
    assert load().port == 8080


LINKS = {
    "SIGNIN_SERVICE_HOST": "10.0.0.1",
    "SIGNIN_SERVICE_PORT": "80",
    "SIGNIN_SERVICE_PORT_HTTP": "80",
    "SIGNIN_PORT_80_TCP": "tcp://10.0.0.1:80",
    "SIGNIN_PORT_80_TCP_ADDR": "10.0.0.1",
    "SIGNIN_DB_PORT": "tcp://10.0.0.2:5432",
    "SIGNIN_DB_SERVICE_HOST": "10.0.0.2",
}


def test_variables_that_kubernetes_makes_of_services_do_not_keep_it_from_starting(variables):
    variables(**LINKS)
    assert load().port == 8080


def test_the_one_that_takes_the_name_of_a_setting_is_explained(variables):
    variables(SIGNIN_PORT="tcp://10.0.0.1:80")
    [told] = complaints()
    assert "enableServiceLinks: false" in told


def test_no_setting_looks_like_a_variable_of_kubernetes():
    assert not any(is_foreign(variable, "tcp://10.0.0.1:80") for variable in KNOWN)


def test_everything_that_is_wrong_is_told_at_once(variables, tmp_path):
    variables(
        SIGNIN_PORT="many",
        SIGNIN_DOCS="perhaps",
        SIGNIN_LOG_LEVEL="LOUD",
        SIGNIN_MAX_WORKERS="0",
        SIGNIN_BREAKER_OPEN_SECONDS="inf",
        SIGNIN_PIPELINES="{",
        SIGNIN_ALLOWED_TEMPLATES="{}",
        SIGNIN_PORJECT="x",
        SIGNIN_DATABASE_URL_FILE=tmp_path / "nowhere",
    )
    told = complaints()
    for sentence in (
        "SIGNIN_PORT must be a whole number, not 'many'.",
        "SIGNIN_DOCS must be true or false, not 'perhaps'.",
        "SIGNIN_LOG_LEVEL must be 'DEBUG', 'INFO', 'WARNING' or 'ERROR', not 'LOUD'.",
        "SIGNIN_MAX_WORKERS must be at least 1, not '0'.",
        "SIGNIN_BREAKER_OPEN_SECONDS must be a finite number, not 'inf'.",
        "SIGNIN_ALLOWED_TEMPLATES must be a JSON array, not {}.",
    ):
        assert sentence in told
    assert {line.split(" ")[0].rstrip(":") for line in told} == {
        "SIGNIN_PORT",
        "SIGNIN_DOCS",
        "SIGNIN_LOG_LEVEL",
        "SIGNIN_MAX_WORKERS",
        "SIGNIN_BREAKER_OPEN_SECONDS",
        "SIGNIN_PIPELINES",
        "SIGNIN_ALLOWED_TEMPLATES",
        "SIGNIN_PORJECT",
        "SIGNIN_DATABASE_URL_FILE",
    }


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:hush-hush@h/d",
        "hush-hush",
        "postgresql://u:hush-hush@h:many/d",
        "postgresql://u:hush-hush/x@h/d",
    ],
)
def test_a_wrong_secret_is_told_without_its_value(variables, url):
    variables(SIGNIN_DATABASE_URL=url)
    [told] = complaints()
    assert told.startswith("SIGNIN_DATABASE_URL ")
    assert "hush" not in told


def test_settings_that_are_printed_hide_their_secrets():
    settings = Settings(_env_file=None, database_url=URL)
    assert "hush" not in repr(settings) + str(settings)
    with pytest.raises(ValueError, match="database_url") as caught:
        Settings(_env_file=None, database_url="mysql://hush")
    assert "hush" not in str(caught.value) + "".join(sentences(caught.value))


def test_a_setting_whose_name_sounds_secret_is_one():
    for name, field in Settings.model_fields.items():
        sounds = any(word in name for word in ("password", "secret", "token", "database_url", "private"))
        assert is_secret(field) == (sounds and name != "secrets_dir"), name


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name != "secrets_dir"])
def test_every_default_can_be_given_as_its_variable(variables, name):
    default = Settings.model_fields[name].default
    if default is not None:
        text = json.dumps(default) if isinstance(default, dict | list) else str(default)
        variables(**{variable_name(name): text})
        assert getattr(load(), name) == default


def test_every_secret_has_a_file_form():
    assert SECRETS
    assert {f"{variable}_FILE" for variable in SECRETS} <= KNOWN


# Where things are


IDS = "must be 3 to 255 letters, digits or -_.~+% that begin with a letter and not with `goog`"


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("SIGNIN_TOPIC", "bad topic/", f"{IDS}, not 'bad topic/'."),
        ("SIGNIN_TOPIC", "projects/p/topics/t", f"{IDS}, not 'projects/p/topics/t'."),
        ("SIGNIN_TOPIC", "", f"{IDS}, not ''."),
        ("SIGNIN_TOPIC", "topic\n", f"{IDS}, not 'topic\\n'."),
        ("SIGNIN_SUBSCRIPTION", "google-reads", f"{IDS}, not 'google-reads'."),
        ("SIGNIN_TABLE", "nodataset", "must be dataset.table, not 'nodataset'."),
        ("SIGNIN_TABLE", "a dataset.table", "must be dataset.table, not 'a dataset.table'."),
        ("SIGNIN_DEAD_LETTER_TABLE", "", "must be dataset.table, not ''."),
        ("SIGNIN_REGION", "", "must be the name of a region, as us-central1, not ''."),
        ("SIGNIN_REGION", "US Central", "must be the name of a region, as us-central1, not 'US Central'."),
    ],
)
def test_a_name_that_nothing_can_have_is_told_at_once(variables, variable, value, sentence):
    variables(**{variable: value})
    assert complaints() == [f"{variable} {sentence}"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SIGNIN_TOPIC", "a.b_c~d+e%20-1"),
        ("SIGNIN_SUBSCRIPTION", "goo"),
        ("SIGNIN_TABLE", "my-project.user_signin.sign-ins 2"),
        ("SIGNIN_TABLE", "example.com:my-project:user_signin.signins"),
        ("SIGNIN_DEAD_LETTER_TABLE", "my-project:a.b"),
        ("SIGNIN_REGION", "europe-west12"),
    ],
)
def test_a_name_that_google_takes_is_taken(variables, variable, value):
    variables(**{variable: value})
    assert getattr(load(), variable.removeprefix("SIGNIN_").lower()) == value
