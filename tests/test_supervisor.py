"""The supervisor alone: one child process, without a Dataflow around it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from service.local import supervisor
from service.local.log_lines import LINE_CHARACTERS, Level, LogLines
from service.local.supervisor import Command, Worker
from tests.dataflow_client import ROOT, until_gone


class Listener:
    """Keeps what the child says and tells when it runs."""

    def __init__(self):
        self.states = []
        self.counters = {}
        self.transforms = []
        self.lines = []
        self.running = asyncio.Event()
        self.first_line = asyncio.Event()

    def said_state(self, state):
        self.states.append(state)
        if state == "RUNNING":
            self.running.set()

    def said_graph(self, transforms):
        self.transforms = list(transforms)

    def said_counters(self, counters):
        self.counters.update({counter.name: counter.value for counter in counters})

    def said_line(self, text, level):
        self.lines.append((text, level))
        self.first_line.set()


@pytest.fixture
def listener():
    return Listener()


@pytest.fixture
def worker_of(tmp_path, listener):
    """Makes a worker of the sample job with the given flags."""

    def make(*flags, module="tests.sample_job", startup_seconds=30.0):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "SIGNIN_JOB_ID": "job-1"}
        command = Command(module, flags, environment, tmp_path)
        return Worker(command, listener, startup_seconds=startup_seconds)

    return make


def open_files():
    """How many files this process holds; 0 where the system does not say."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


async def test_a_child_that_ends_by_itself_is_heard_to_its_last_word(worker_of, listener):
    end = await worker_of("--finish=yes", "--greeting=hello").run()
    assert end.code == 0
    assert listener.states == ["RUNNING", "DRAINED"]
    assert listener.counters == {"parsed": 5}
    assert ("INFO greeting=hello project= job_name=", Level.INFO) in listener.lines


async def test_a_child_that_is_asked_to_drain_ends_with_zero(worker_of, listener):
    worker = worker_of()
    run = asyncio.create_task(worker.run())
    await asyncio.wait_for(listener.running.wait(), 15)
    worker.stop(signal.SIGTERM)
    assert (await run).code == 0
    assert listener.states == ["RUNNING", "DRAINING", "DRAINED"]


async def test_a_child_that_lingers_after_its_drain_has_finished_all_the_same(
    worker_of, listener, monkeypatch
):
    monkeypatch.setattr(supervisor, "EXIT_GRACE_SECONDS", 0.1)
    end = await worker_of("--finish=yes", "--linger=yes").run()
    assert end.is_clean
    assert str(end) == "signal SIGKILL (not gone 0.1 s after DRAINED)"


async def test_a_failed_child_leaves_its_exit_code_and_its_last_lines(worker_of, listener):
    end = await worker_of("--fail=3").run()
    assert str(end) == "exit code 3"
    assert end.last_lines[-1] == "  the last words of the sample job"
    assert listener.lines[-2:] == [
        ("WARNING something is about to happen", Level.WARNING),
        ("Traceback (most recent call last):\n  the last words of the sample job", Level.ERROR),
    ]


def test_a_traceback_is_one_message_that_ends_with_its_exception():
    log = LogLines()
    lines = [
        "2026-01-01 ERROR job: it broke",
        "Traceback (most recent call last):",
        '  File "job.py", line 1, in <module>',
        "",
        "    raise ValueError(1)",
        "ValueError: 1",
        "The above exception was the direct cause of the following exception:",
        "Traceback (most recent call last):",
        "  File b",
        "Traceback (most recent call last):",
        "  File c",
        "2026-01-01 INFO job: goes on",
    ]
    told = [message for line in lines for message in log.take(line)]
    assert [text.splitlines()[-1] for text, _ in told] == [
        "2026-01-01 ERROR job: it broke",
        "ValueError: 1",
        "The above exception was the direct cause of the following exception:",
        "  File b",
        "  File c",
        "2026-01-01 INFO job: goes on",
    ]
    assert [level for _, level in told] == [Level.ERROR] * 5 + [Level.INFO]
    assert log.rest() == []


def test_a_traceback_without_end_is_given_out_in_parts_and_keeps_its_end():
    log = LogLines()
    lines = ["Traceback (most recent call last):", *(f"  line {n} " + "x" * 100 for n in range(1_000))]
    told = [message for line in lines for message in log.take(line)]
    told += log.rest()
    assert told[0].text.splitlines()[-1].startswith("  line 498 ")
    assert max(len(message.text) for message in told) <= 8_192


async def test_a_killed_child_names_the_signal(worker_of, listener):
    worker = worker_of()
    run = asyncio.create_task(worker.run())
    await asyncio.wait_for(listener.running.wait(), 15)
    worker.stop(signal.SIGKILL)
    assert str(await run) == "signal SIGKILL"


async def test_a_child_that_does_not_listen_is_killed_after_the_grace(worker_of, listener):
    worker = worker_of("--deaf=yes")
    run = asyncio.create_task(worker.run())
    await asyncio.wait_for(listener.running.wait(), 15)
    worker.stop(signal.SIGINT, grace_seconds=0.1)
    assert str(await run) == "signal SIGKILL (not gone 0.1 s after SIGINT)"


async def test_a_child_that_never_runs_is_killed_in_time(worker_of):
    end = await worker_of("--slow=yes", startup_seconds=0.2).run()
    assert str(end) == "signal SIGKILL (not running after 0.2 s)"


async def test_a_stop_before_the_child_exists_is_not_lost(worker_of):
    worker = worker_of("--slow=yes")
    worker.stop(signal.SIGTERM, grace_seconds=5)
    end = await asyncio.wait_for(worker.run(), 15)
    assert end.code == -signal.SIGTERM


async def test_no_grandchild_outlives_the_child(worker_of, listener):
    await worker_of("--grandchild=yes", "--finish=yes").run()
    pid = int(listener.lines[0][0].rpartition(" ")[2])
    await until_gone(pid)


async def test_long_lines_are_cut_and_none_is_lost(worker_of, listener):
    await worker_of("--noise=3000", "--finish=yes").run()
    noise = [text for text, _ in listener.lines if text.endswith("x…")]
    assert len(noise) == 3_000
    assert {len(text) for text in noise} == {LINE_CHARACTERS}
    assert listener.states[-1] == "DRAINED"


async def test_output_that_is_no_protocol_is_log(tmp_path, listener):
    source = 'print("plain"); print("{}"); print(\'{"event": "error", "message": "bad"}\'); print("[1]")'
    (tmp_path / "chatter.py").write_text(source, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    worker = Worker(Command("chatter", (), environment, tmp_path), listener, startup_seconds=30)
    assert (await worker.run()).code == 0
    assert [text for text, _ in listener.lines] == ["plain", "{}", "bad", "[1]"]
    assert dict(listener.lines)["bad"] == Level.ERROR


async def test_a_line_without_end_does_not_fill_the_memory(tmp_path, listener):
    source = 'import sys; sys.stderr.write("y" * 5_000_000 + "\\nafter\\n")'
    (tmp_path / "endless.py").write_text(source, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    worker = Worker(Command("endless", (), environment, tmp_path), listener, startup_seconds=30)
    assert (await worker.run()).code == 0
    assert [len(text) for text, _ in listener.lines] == [LINE_CHARACTERS, len("after")]


async def test_a_module_that_does_not_exist_ends_with_the_reason_in_the_log(worker_of):
    end = await worker_of(module="tests.no_such_job").run()
    assert end.code == 1
    assert "tests.no_such_job" in end.last_lines[-1]


async def test_arguments_that_the_system_refuses_are_an_os_error(worker_of):
    before = open_files()
    with pytest.raises(OSError, match="Argument list too long"):
        await worker_of("--greeting=" + "x" * 4_000_000).run()
    await asyncio.sleep(0)
    assert open_files() <= before
