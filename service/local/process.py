"""A server of the local stack as a child process: started, watched, stopped, with its log in a file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

LOG_BYTES = 4_000_000  # beyond them the log of the last runs becomes NAME.log.1
TAIL_LINES = 20
# Of what a server says before its address: an exporter of OpenTelemetry may print to the console at any time.
MOST_LINES = 10_000
_TAIL_BYTES = 8_192
_KILL_SECONDS = 5.0


class ServerError(Exception):
    """The server did not come up; the message is for a person and ends with its last log lines."""


class _Ready(msgspec.Struct):
    ready: str
    besides: dict[str, str] = {}


class ServerProcess:
    """One `python -m service.local.lifeline MODULE`, in a session of its own.

    `address` is what the server announced, `besides` what else it serves by name, `environment` what
    it gets besides ours. Its standard error goes to `log_path`. It dies with this process, because its
    standard input is a pipe whose other end only this process holds.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        *,
        directory: Path,
        log_path: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.address = ""
        self.besides: dict[str, str] = {}
        self.log_path = log_path
        self._command = [sys.executable, "-m", "service.local.lifeline", module, *arguments]
        self._directory = directory
        self.environment = dict(environment or {})
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0
        self._lifeline = -1
        self._stdout: asyncio.ReadTransport | None = None
        self._drain: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """The process id; 0 before the start."""
        return self._process.pid if self._process else 0

    async def start(self, deadline_seconds: float) -> str:
        """Returns the address once the server answers. Raises ServerError, with nothing left running."""
        try:
            async with asyncio.timeout(deadline_seconds):
                reader = await self._spawn()
                self.address = await self._ready_line(reader)
        except TimeoutError:
            await self.stop(0)
            raise ServerError(self._failure(f"was not ready after {deadline_seconds:g} s")) from None
        except OSError as error:
            await self.stop(0)
            raise ServerError(f"{self.name} cannot be started: {error}") from error
        except BaseException:
            await self.stop(0)
            raise
        self._drain = asyncio.create_task(_read_to_end(reader), name=f"stdout of {self.name}")
        return self.address

    async def ended(self) -> str:
        """Returns when the process is gone: a sentence with how it ended and where its log is."""
        await self._wait()
        return f"{self.name} ended unasked with {self._exit()}; its log is {self.log_path}"

    async def stop(self, grace_seconds: float) -> None:
        """Asks with SIGTERM, waits for the grace, then kills its process group. Idempotent."""
        process = self._process
        try:
            if process and process.returncode is None and grace_seconds > 0:
                with contextlib.suppress(ProcessLookupError, TimeoutError):
                    process.terminate()
                    async with asyncio.timeout(grace_seconds):
                        await process.wait()
        finally:
            if process and process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_KILL_SECONDS):
                        await process.wait()
            self._close()

    def tail(self) -> str:
        """The last lines of the log of this run, empty where it wrote none."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                return "\n".join(log.read().decode(errors="replace").splitlines()[-TAIL_LINES:])
        except OSError:
            return ""

    async def _spawn(self) -> asyncio.StreamReader:
        # Pipes of our own: with asyncio's, `wait` returns only after the last grandchild closed them.
        with self._open_log() as log, contextlib.ExitStack() as child_ends:
            lifeline, self._lifeline = os.pipe()
            child_ends.callback(os.close, lifeline)
            read_end, write_end = os.pipe()
            child_ends.callback(os.close, write_end)
            reader = asyncio.StreamReader()
            self._stdout, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
            )
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                cwd=self._directory,
                env={**os.environ, **self.environment, "PYTHONUNBUFFERED": "1"},
                stdin=lifeline,
                stdout=write_end,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal must not reach it: the stack stops in order
            )
        return reader

    def _open_log(self) -> Any:
        self._directory.mkdir(parents=True, exist_ok=True)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_BYTES:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        log = self.log_path.open("ab")
        self._log_start = log.tell()
        return log

    async def _ready_line(self, reader: asyncio.StreamReader) -> str:
        line = b""
        for _ in range(MOST_LINES):
            try:
                line = await reader.readline()
            except ValueError as error:  # longer than the reader's limit
                raise ServerError(self._failure("said too much where its address was expected")) from error
            if not line:
                await self._wait()
                raise ServerError(self._failure(f"ended with {self._exit()} before it was ready"))
            with contextlib.suppress(msgspec.MsgspecError):
                told = msgspec.json.decode(line, type=_Ready)
                self.besides = told.besides
                return told.ready
        raise ServerError(self._failure(f"said {line[:200]!r} where its address was expected"))

    async def _wait(self) -> None:
        if self._process:
            await self._process.wait()

    def _exit(self) -> str:
        code = self._process.returncode if self._process else None
        return (
            f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        )

    def _failure(self, what: str) -> str:
        tail = self.tail()
        said = (
            f"Its last log lines ({self.log_path}):\n{tail}" if tail else f"Its log {self.log_path} is empty."
        )
        return f"{self.name} {what}. {said}"

    def _close(self) -> None:
        if self._drain:
            self._drain.cancel()
        if self._stdout:
            self._stdout.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
        self._drain, self._stdout, self._lifeline = None, None, -1


async def _read_to_end(reader: asyncio.StreamReader) -> None:
    """Drops what a server prints after its address, so that it never waits for a reader."""
    while await reader.read(1 << 16):
        pass
