"""Servers as processes of their own that print their address, and the CPU time they use."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from tests.running import clean_environment

START_SECONDS = 60.0
STOP_SECONDS = 40.0
REPOSITORY = Path(__file__).parents[1]
_TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """A module run as a process; `address` is what it printed, its log lies in `directory`."""

    def __init__(
        self, module: str, *arguments: str, directory: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = "-".join((module.rsplit(".", 1)[-1], *arguments[:1]))
        # The interpreter itself, not the lifeline: what is measured is what runs in production.
        self._command = [sys.executable, "-m", module, *arguments]
        self._directory = directory
        self._environment = {
            **clean_environment(),
            "PYTHONPATH": str(REPOSITORY),
            "SIGNIN_PROJECT": "signin-local",
            "DATAFLOW_EMULATOR_HOST": "127.0.0.1:1",
            **(environment or {}),
        }
        self._process: subprocess.Popen[str] | None = None
        self.address = ""

    def start(self) -> Self:
        """Raises SystemExit with the log where it does not start."""
        path = self._directory / f"{self.name}.log"
        with path.open("a") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], START_SECONDS)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self.kill()
            raise SystemExit(f"{self.name} did not start:\n{path.read_text()[-3000:]}")
        self.address = json.loads(line)["ready"]
        return self

    def __enter__(self) -> Self:
        return self if self._process else self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def port(self) -> int:
        return int(urlsplit(self.address if "//" in self.address else f"//{self.address}").port or 0)

    def pids(self) -> list[int]:
        """The process and its children."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]

    def cpu_seconds(self) -> float:
        """CPU time used so far, in user and kernel mode, children that live included."""
        total = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / _TICKS

    def send(self, number: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._wait()

    def stop(self) -> int:
        """Asks with SIGTERM; returns the exit code."""
        self.send(signal.SIGTERM)
        return self._wait()

    def _wait(self) -> int:
        assert self._process
        try:
            return self._process.wait(STOP_SECONDS)
        finally:
            if self._process.stdout:
                self._process.stdout.close()
            self._process = None


def service(
    directory: Path,
    pubsub: str,
    *,
    workers: int = 1,
    database_url: str = "",
    options: Sequence[str] = (),
    **values: str,
) -> Server:
    """`signin serve` on a free port, its data in `directory`."""
    return Server(
        "service",
        "serve",
        "--announce",
        "--port",
        "0",
        "--workers",
        str(workers),
        *options,
        directory=directory,
        environment={"PUBSUB_EMULATOR_HOST": pubsub, "SIGNIN_DATABASE_URL": database_url, **values},
    )


def local_pubsub(directory: Path, port: int = 0) -> Server:
    """The local stack's Pub/Sub, its journal in `directory`."""
    return Server(
        "service.local.pubsub",
        "--port",
        str(port),
        "--data-dir",
        str(directory / "pubsub"),
        directory=directory,
    )
