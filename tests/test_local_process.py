"""A server of the local stack as a process of its own: when it is ready, what it says, and how it ends."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from service.local.process import ServerError, ServerProcess
from tests.marked_processes import (
    marked,
    marked_environment,  # noqa: F401
    wait_until_gone,
)


def server(directory: Path, source: str) -> ServerProcess:
    """A server process that runs `source` in place of a server."""
    (directory / "sample_server.py").write_text(source)
    return ServerProcess(
        "sample",
        "sample_server",
        [],
        directory=directory,
        log_path=directory / "logs" / "sample.log",
        environment={"PYTHONPATH": str(directory)},
    )


async def test_a_server_that_is_never_ready_is_killed_at_the_deadline(tmp_path: Path, mark: str) -> None:
    silent = server(tmp_path, "import sys, time; print('waiting', file=sys.stderr); time.sleep(100)")
    with pytest.raises(ServerError, match=r"sample was not ready after 5 s\. Its last log lines .*\nwaiting"):
        await silent.start(5)
    assert marked(mark) == set()


async def test_what_a_server_says_before_its_address_is_passed_over(tmp_path: Path) -> None:
    telemetry = r"print('{\n    \"name\": \"GET\",\n    \"ready\": \"never\"\n}\n\n[]\n1')"
    chatty = server(tmp_path, f'{telemetry}; print(\'{{"ready": "here"}}\'); import time; time.sleep(100)')
    assert await chatty.start(30) == "here"
    await chatty.stop(1)


async def test_a_server_that_says_nothing_but_other_things_is_refused(tmp_path: Path, mark: str) -> None:
    chatty = server(tmp_path, "while True: print('Serving HTTP')")
    with pytest.raises(ServerError, match="said b'Serving HTTP"):
        await chatty.start(30)
    assert marked(mark) == set()


async def test_a_server_that_prints_much_after_its_address_is_never_held_up(tmp_path: Path) -> None:
    chatty = server(tmp_path, 'print(\'{"ready": "here"}\'); print("x" * 5_000_000); raise SystemExit(3)')
    assert await chatty.start(30) == "here"
    assert "sample ended unasked with exit code 3" in await asyncio.wait_for(chatty.ended(), 10)
    await chatty.stop(1)


async def test_a_server_that_ignores_sigterm_is_killed_with_its_group(tmp_path: Path, mark: str) -> None:
    source = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
print('{"ready": "here"}')
time.sleep(100)
"""
    stubborn = server(tmp_path, source)
    await stubborn.start(30)
    deadline = time.monotonic() + 10
    while len(marked(mark)) < 2:  # a process that has just begun may not show its environment yet
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    await stubborn.stop(0.2)
    await asyncio.to_thread(wait_until_gone, mark, 5)


async def test_a_log_that_grew_large_makes_room_at_the_next_start(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "sample.log"
    log.parent.mkdir()
    log.write_bytes(b"old\n" * 1_000_001)
    failing = server(tmp_path, "raise SystemExit('new')")
    with pytest.raises(ServerError, match=r"new$") as caught:
        await failing.start(30)
    assert "old" not in str(caught.value)
    assert log.read_text() == "new\n"
    assert log.with_suffix(".log.1").stat().st_size == 4_000_004
