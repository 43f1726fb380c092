"""The scan of `.ci/secrets`: it finds what was planted, now and in history, and does not repeat it."""

from __future__ import annotations

import subprocess

import pytest

from service.auth import keys
from service.models import utc_now
from tests.server_process import REPOSITORY

PRIVATE_KEY = "-----BEGIN " + "RSA PRIVATE KEY-----"
AWS_KEY = "AKIA" + "IOSFODNN7Q2WZ4XP"


def scan(directory):
    done = subprocess.run(
        [REPOSITORY / ".ci" / "secrets", str(directory)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


@pytest.fixture
def git(tmp_path):
    def run(*arguments):
        who = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    run("init", "--initial-branch=main")
    return run


@pytest.fixture
def commit(tmp_path, git):
    def run(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.txt").write_text(text)
        git("add", "-A")
        git("commit", "-m", "x")

    return run


@pytest.mark.soak
def test_a_planted_secret_is_found_in_the_files_and_in_history_and_not_repeated(tmp_path, commit):
    commit(a="nothing here\n", b="sign-ins: 12\n")
    code, told = scan(tmp_path)
    assert (code, "0 that look like secrets" in told) == (0, True)

    ours = keys.generate("x", frozenset({"admin"}), utc_now(), None).text
    commit(a=f"key = {ours}\n", b=f"aws: {AWS_KEY}\n", c=f"{PRIVATE_KEY}\n")
    code, told = scan(tmp_path)
    assert code == 1
    for name, kind in (("a.txt", "an API key of this service"), ("b.txt", "AWS"), ("c.txt", "Private Key")):
        assert any(line.startswith(name) and kind in line for line in told.splitlines()), (name, told)
    assert ours not in told
    assert AWS_KEY not in told

    commit(a="gone\n", b="gone\n", c="gone\n")
    code, told = scan(tmp_path)
    assert code == 1
    assert told.count("(in history)") >= 3


@pytest.mark.soak
def test_what_only_a_merge_itself_has_added_is_found_and_what_looks_like_a_header_hides_nothing(
    tmp_path, git, commit
):
    commit(a="one\ntwo\n", b="b\n")
    git("switch", "--create", "side")
    commit(a="one\nside\n")
    git("switch", "main")
    commit(a="main\ntwo\n")
    git("merge", "--no-commit", "--strategy=ours", "side")
    commit(a=f"main\n+ x\naws: {AWS_KEY}\n", c=f"{PRIVATE_KEY}\n")
    commit(a="gone\n", c="gone\n")
    code, told = scan(tmp_path)
    assert code == 1
    assert "a.txt" in told
    assert "AWS" in told
    assert "c.txt" in told
