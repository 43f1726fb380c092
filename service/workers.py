"""`signin serve --workers N`: one process holds the port, N processes accept from it.

The parent serves nothing and makes no client: it starts fresh interpreters (`python -m service.workers`)
that inherit the listening socket and the file in which they share their metrics, so that nothing of
Google's libraries is ever carried over a fork. A worker's standard input is a pipe: its first line is the
settings, after it comes nothing until the parent is gone, and then the worker goes too. Its standard output
is a pipe only until it says there that it is ready; what it prints goes to the parent's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable

from service.config import Settings
from service.metrics import Metrics
from service.metrics.shared import Region, make_file
from service.server import SHUTDOWN_SECONDS
from service.waking import woken

log = logging.getLogger(__name__)

ORPHANED_EXIT_CODE = 75
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
STEADY_SECONDS = 10.0
END_SECONDS = SHUTDOWN_SECONDS + 20.0  # what is in flight, then every part of the application
_READY = b"ready\n"
_PR_SET_PDEATHSIG = 1


class Workers:
    """The processes that answer; one that dies is replaced, after a pause that grows while they die early."""

    def __init__(
        self, settings: Settings, listener: socket.socket, count: int, on_started: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._metrics = make_file()
        self._stdout = os.dup(1)
        self._count = count
        self._on_started = on_started
        self._processes: set[Process] = set()
        self._unready = count
        self._ending = asyncio.Event()
        self._failed = False

    async def run(self) -> int:
        """Serves until SIGTERM or SIGINT and returns the exit code.

        It is 0 when all workers ended as asked, 1 when one had to be killed or could not even start.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        slots = [asyncio.create_task(self._keep(slot), name=f"worker {slot}") for slot in range(self._count)]
        try:
            await asyncio.wait(
                [asyncio.create_task(self._ending.wait()), *slots], return_when="FIRST_COMPLETED"
            )
            self._end_once()
            patience = END_SECONDS + self._settings.shutdown_delay_seconds
            _, late = await asyncio.wait(slots, timeout=patience)
            if late:
                log.error("%d workers did not end within %g s and are killed", len(late), patience)
                self._failed = True
        finally:
            for process in self._processes:
                _send(process, signal.SIGKILL)
            await asyncio.gather(*slots)
            os.close(self._metrics)
            os.close(self._stdout)
        return int(self._failed)

    def _end(self) -> None:
        """Asks all workers to end; asked again, it tells them not to wait for their callers."""
        if not self._end_once():
            self._signal_all()

    def _end_once(self) -> bool:
        if self._ending.is_set():
            return False
        self._ending.set()
        self._listener.close()  # with the workers' own copies closed, a new caller is refused at once
        self._signal_all()
        return True

    def _signal_all(self) -> None:
        for process in self._processes:
            _send(process, signal.SIGTERM)

    async def _keep(self, slot: int) -> None:
        """Keeps one worker alive until the end; gives up where it never started."""
        pause = FIRST_PAUSE_SECONDS
        first = True
        while not self._ending.is_set():
            started = time.monotonic()
            ready, code = await self._run_one(slot, first=first)
            if self._ending.is_set():
                self._failed |= code not in (0, -signal.SIGTERM)  # the latter before it could serve
                return
            if first and not ready:
                log.critical("worker %d could not start (%s)", slot, _exit(code))
                self._failed = True
                return
            first = False
            if ready and time.monotonic() - started > STEADY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            log.error("worker %d ended unasked (%s); the next one starts in %g s", slot, _exit(code), pause)
            await woken(self._ending, pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _run_one(self, slot: int, *, first: bool) -> tuple[bool, int]:
        """Runs one worker to its end: whether it ever answered, and its exit code."""
        fd = self._listener.fileno()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __name__,
            str(fd),
            str(self._metrics),
            str(slot),
            str(self._count),
            str(self._stdout),
            stdin=PIPE,
            stdout=PIPE,
            pass_fds=[fd, self._metrics, self._stdout],
            start_new_session=True,  # Ctrl-C reaches the parent alone, which asks each worker once
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self._processes.add(process)
        try:
            if self._ending.is_set():  # asked to end while it was being started
                _send(process, signal.SIGTERM)
            process.stdin.write(self._settings.model_dump_json().encode() + b"\n")
            ready = await process.stdout.readline() == _READY
            if ready and first:
                self._unready -= 1
                if not self._unready:
                    self._on_started()
            return ready, await process.wait()
        finally:
            self._processes.discard(process)
            process.stdin.close()


def run(settings: Settings, listener: socket.socket, count: int, on_started: Callable[[], None]) -> None:
    """Serves with `count` processes until a signal comes; raises SystemExit where that did not go well."""

    async def supervise() -> int:
        return await Workers(settings, listener, count, on_started).run()

    if code := asyncio.run(supervise()):
        raise SystemExit(code)


def _send(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _exit(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _hold_to_parent() -> None:
    """Ends this process when the other end of its standard input is closed, however that came."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # for a worker that is stuck in C code

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(ORPHANED_EXIT_CODE)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def _settings_line() -> bytes:
    """The first line of standard input, read without a buffer that would take more."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(ORPHANED_EXIT_CODE)
        line += byte
    return bytes(line)


def main() -> None:
    """One worker: answers on the socket whose descriptor it is given, until SIGTERM.

    Its arguments are the socket's descriptor, that of the file of the metrics, its number, how many workers
    there are, and the descriptor of the parent's standard output.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    given = Settings.model_validate_json(_settings_line())
    _hold_to_parent()
    from service import server
    from service.app import create_app
    from service.health import installed_version
    from service.logs import configure
    from service.tracing import from_environment

    configure(given)
    listening, shared, slot, count, stdout = map(int, sys.argv[1:])
    ready = os.dup(1)
    os.dup2(stdout, 1)  # a console exporter would fill the pipe, which nobody reads any further
    os.close(stdout)
    traces = from_environment(given, installed_version())
    app = create_app(given, Metrics(Region(shared, slot, count)), traces)

    def started() -> None:
        os.write(ready, _READY)
        os.close(ready)

    server.run(app, socket.socket(fileno=listening), started)


if __name__ == "__main__":
    main()
