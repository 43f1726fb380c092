"""The processes that a test has started: a mark in their environment, by which they are found."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import pytest

from tests.running import MARK


def marked(mark: str) -> set[int]:
    """The living processes that were started with the mark in their environment, this one aside."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                found.add(int(entry.name))
        except OSError:
            continue  # it ended while we looked, or is not ours
    return found - {os.getpid()}


def wait_until_gone(mark: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while left := marked(mark):
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.02)


@pytest.fixture(name="mark")
def marked_environment(monkeypatch: pytest.MonkeyPatch) -> str:
    """Marks what the test starts, and its children, so that `marked` finds them."""
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARK, value)
    return value
