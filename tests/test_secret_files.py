"""Secrets from files: what their variables name or is mounted, what is read, and what is refused."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cli.platform import settings_environment
from service.config import load, secret_files
from tests.given_variables import (
    URL,
    complaints,
    given_variables,  # noqa: F401
)


@pytest.fixture
def secret(tmp_path):
    def write(content, name="url"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n"])
def test_a_secret_is_read_from_the_file_that_its_variable_names(variables, secret, end):
    variables(SIGNIN_DATABASE_URL_FILE=secret(URL.encode() + end))
    assert load().database_url == URL


def test_env_file_may_name_the_file_of_a_secret_too(variables, secret, tmp_path):
    (tmp_path / ".env").write_text(f"SIGNIN_DATABASE_URL_FILE={secret(URL.encode())}\nOTHER=1\n")
    assert load().database_url == URL


@pytest.mark.parametrize("name", ["signin_database_url", "SIGNIN_DATABASE_URL"])
def test_a_mounted_secret_of_the_variable_s_name_is_read(variables, secret, name):
    secret(URL.encode() + b"\n", f"secrets/{name}")
    assert load().database_url == URL


def test_a_mounted_secret_gives_way_to_a_variable(variables, secret):
    secret(URL.encode(), "secrets/signin_database_url")
    variables(SIGNIN_DATABASE_URL="sqlite:///mine.db")
    assert load().database_url == "sqlite:///mine.db"


def test_a_link_to_the_secret_is_followed_as_kubernetes_makes_them(variables, secret, tmp_path):
    secret(URL.encode(), "..data")
    (tmp_path / "link").symlink_to("..data")
    variables(SIGNIN_DATABASE_URL_FILE=tmp_path / "link")
    assert load().database_url == URL


def test_a_secret_that_is_given_twice_is_refused(variables, secret):
    variables(SIGNIN_DATABASE_URL=URL, SIGNIN_DATABASE_URL_FILE=secret(URL.encode()))
    assert complaints() == [
        "SIGNIN_DATABASE_URL and SIGNIN_DATABASE_URL_FILE are both given: take one of them away."
    ]


def test_an_empty_variable_beside_its_file_is_not_given(variables, secret):
    variables(SIGNIN_DATABASE_URL="", SIGNIN_DATABASE_URL_FILE=secret(URL.encode()))
    assert load().database_url == URL


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"postgresql://\xff", "is not UTF-8"),
        (b"x" * (secret_files.MOST_BYTES + 1), "more than 65536 bytes"),
    ],
)
def test_a_file_that_holds_no_secret_is_told_without_its_content(variables, secret, content, words):
    path = secret(content)
    variables(SIGNIN_DATABASE_URL_FILE=path)
    [told] = complaints()
    assert told.startswith(f"SIGNIN_DATABASE_URL_FILE names {path}, which ")
    assert words in told


def test_a_file_that_is_not_there_or_is_none_is_told(variables, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, words in (
        ("nowhere", "there is no such file"),
        ("", "no regular file"),
        ("pipe", "no regular file"),
        ("loop", "cannot be opened"),
    ):
        variables(SIGNIN_DATABASE_URL_FILE=tmp_path / name)
        [told] = complaints()
        assert words in told


@given(content=st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\n"), min_size=1))
def test_any_text_survives_its_file(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any-secret"
    for end in ("", "\n", "\r\n"):
        path.write_text(content + end, encoding="utf-8", newline="")
        assert secret_files.read(path) == content


def test_a_child_process_gets_the_secret_once(variables, secret, monkeypatch):
    variables(SIGNIN_DATABASE_URL_FILE=secret(URL.encode()))
    for name, value in settings_environment(load()).items():
        monkeypatch.setenv(name, value)
    assert load().database_url == URL
