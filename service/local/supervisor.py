"""One child process under supervision: read without pause, stopped by a ladder, never left alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from service.local.log_lines import Level, LogLines, shortened

PENDING_BYTES = 1 << 20  # of a line whose end has not come yet
READER_GRACE_SECONDS = 5.0
EXIT_GRACE_SECONDS = 10.0  # from the word DRAINED to the end of the process
LAST_LINES = 20


class Distribution(msgspec.Struct, frozen=True):
    """A Beam distribution: how many values there were, their sum, the least and the greatest."""

    count: int
    sum: int
    min: int
    max: int

    def with_values_of(self, other: Distribution) -> Distribution:
        """The distribution of both's values."""
        least, most = min(self.min, other.min), max(self.max, other.max)
        return Distribution(self.count + other.count, self.sum + other.sum, least, most)


class Counter(msgspec.Struct, frozen=True):
    """A Beam counter or distribution as the child tells it, of all that was since the child began."""

    name: str
    value: float | Distribution
    namespace: str = ""
    step: str = ""


class _Event(msgspec.Struct, frozen=True):
    """One line of the child's protocol."""

    event: str
    state: str = ""
    message: str = ""
    counters: list[Counter] = []
    transforms: list[str] = []


class Watcher(Protocol):
    """Whoever wants to know what the child says. Called on the event loop; must not block."""

    def said_state(self, state: str) -> None:
        """The child is RUNNING, DRAINING or DRAINED."""

    def said_graph(self, transforms: Sequence[str]) -> None:
        """The child's graph has steps of these full names."""

    def said_counters(self, counters: Sequence[Counter]) -> None:
        """The child's counters have these values."""

    def said_line(self, text: str, level: Level) -> None:
        """The child logged a line, or a whole traceback; cut to what is kept of it."""


@dataclass(frozen=True, slots=True)
class Command:
    """A module to run with its arguments, its whole environment and its working directory."""

    module: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path


@dataclass(frozen=True, slots=True)
class Exit:
    """How the child ended: its return code as asyncio gives it, and why it was killed, if we did it."""

    code: int
    killed_because: str = ""
    said_drained: bool = False
    last_lines: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Whether the child finished its work, be it that it then had to be helped out of the door."""
        return self.code == 0 or (self.said_drained and bool(self.killed_because))

    def __str__(self) -> str:
        how = f"signal {_signal_name(-self.code)}" if self.code < 0 else f"exit code {self.code}"
        return f"{how} ({self.killed_because})" if self.killed_because else how


class Worker:
    """A child process that speaks JSON lines on standard output and logs on standard error.

    `run` starts it and returns when it is gone with all of its process group. The child dies with
    this process, because its standard input is a pipe that only this process holds (lifeline).
    """

    def __init__(self, command: Command, watcher: Watcher, *, startup_seconds: float) -> None:
        self._command = command
        self._watcher = watcher
        self._startup_seconds = startup_seconds
        self._process: asyncio.subprocess.Process | None = None
        self._startup: asyncio.TimerHandle | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._asked: signal.Signals | None = None
        self._killed_because = ""
        self._said_drained = False
        self._log = LogLines()
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)

    async def run(self) -> Exit:
        """Runs the child to its end. Raises OSError or ValueError where it cannot be started."""
        async with contextlib.AsyncExitStack() as pipes:
            lifeline, held = os.pipe()
            pipes.callback(os.close, held)
            try:
                protocol, protocol_end = await _open_pipe(pipes)
                log, log_end = await _open_pipe(pipes)
                try:
                    self._process = await self._start(lifeline, protocol_end, log_end)
                finally:
                    os.close(protocol_end)
                    os.close(log_end)
            finally:
                os.close(lifeline)
            self._startup = self._kill_later(
                self._startup_seconds, f"not running after {self._startup_seconds:g} s"
            )
            if self._asked:
                self._send(self._asked)
            readers = [
                asyncio.create_task(_read_lines(protocol, self._take_protocol)),
                asyncio.create_task(_read_lines(log, self._take_log)),
            ]
            try:
                await self._process.wait()
            finally:
                _kill_group(self._process)
                code = await self._process.wait()
                await _finish(readers)
                for message in self._log.rest():
                    self._tell(message.text, message.level)
                for timer in (self._startup, self._grace):
                    if timer:
                        timer.cancel()
        return Exit(code, self._killed_because, self._said_drained, tuple(self._last_lines))

    async def _start(self, stdin: int, stdout: int, stderr: int) -> asyncio.subprocess.Process:
        command = self._command
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "service.local.lifeline",
            command.module,
            *command.arguments,
            env={**command.environment, "PYTHONUNBUFFERED": "1"},
            cwd=command.directory,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,  # one group to kill, and no Ctrl-C from the terminal
        )

    def stop(self, number: signal.Signals, grace_seconds: float | None = None) -> None:
        """Sends the signal; kills the child if it is still there after the grace (None: never)."""
        self._asked = number
        self._send(number)
        if grace_seconds is not None:
            self._stop_by(grace_seconds, number.name)

    def kill(self, reason: str) -> None:
        """Ends the child at once; the reason stands in its Exit."""
        self._killed_because = self._killed_because or reason
        self._asked = signal.SIGKILL
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self._process and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _stop_by(self, grace_seconds: float, cause: str) -> None:
        if self._grace:
            self._grace.cancel()
        self._grace = self._kill_later(grace_seconds, f"not gone {grace_seconds:g} s after {cause}")

    def _kill_later(self, seconds: float, reason: str) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, self.kill, reason)

    def _take_protocol(self, line: bytes) -> None:
        try:
            event = msgspec.json.decode(line, type=_Event)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self._take_log(line)
            return
        if event.event == "state":
            if event.state == "RUNNING" and self._startup:
                self._startup.cancel()
            elif event.state == "DRAINED" and not self._said_drained:
                self._said_drained = True
                self._stop_by(EXIT_GRACE_SECONDS, "DRAINED")
            self._watcher.said_state(event.state)
        elif event.event == "graph":
            self._watcher.said_graph(event.transforms)
        elif event.event == "metrics":
            self._watcher.said_counters(event.counters)
        elif event.event == "error":
            self._tell(shortened(event.message), Level.ERROR)
        else:
            self._take_log(line)

    def _take_log(self, line: bytes) -> None:
        for message in self._log.take(line.decode(errors="replace")):
            self._tell(message.text, message.level)

    def _tell(self, text: str, level: Level) -> None:
        self._last_lines.extend(text.splitlines()[-LAST_LINES:])
        self._watcher.said_line(text, level)


async def _open_pipe(pipes: contextlib.AsyncExitStack) -> tuple[asyncio.StreamReader, int]:
    """A pipe that is read here; returns its reader and the end to write to.

    asyncio's own subprocess pipes are not used: with them `wait` does not return while a grandchild
    holds one open.
    """
    loop = asyncio.get_running_loop()
    read_end, write_end = os.pipe()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
    )
    pipes.callback(transport.close)
    return reader, write_end


async def _read_lines(reader: asyncio.StreamReader, take: Callable[[bytes], None]) -> None:
    """Hands over each line; one that is longer than PENDING_BYTES is cut there."""
    pending = bytearray()
    skipping = False
    while chunk := await reader.read(1 << 16):
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            if not skipping:
                take(bytes(pending) + line)
            pending.clear()
            skipping = False
        if not skipping:
            pending += rest
        if len(pending) > PENDING_BYTES:
            take(bytes(pending))
            pending.clear()
            skipping = True
    if pending:
        take(bytes(pending))


async def _finish(readers: list[asyncio.Task[None]]) -> None:
    """Waits for the rest of the output; gives up on a pipe that an escaped grandchild holds."""
    _, late = await asyncio.wait(readers, timeout=READER_GRACE_SECONDS)
    for reader in late:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)


def _kill_group(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
