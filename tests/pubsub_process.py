"""The local Pub/Sub server as a process of its own, for tests."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

_START_SECONDS = 30


class PubsubProcess:
    """`python -m service.local.pubsub` with its journal in `data_dir`; leaving the block kills it."""

    def __init__(self, data_dir: Path, port: int = 0) -> None:
        self._command = [sys.executable, "-m", "service.local.lifeline", "service.local.pubsub"]
        self._command += ["--port", str(port), "--data-dir", str(data_dir)]

    def __enter__(self) -> Self:
        self.process: Any = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert select.select([self.process.stdout], [], [], _START_SECONDS)[0], "the server does not start"
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=10)[1]
        self.address: str = json.loads(line)["ready"]
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)

    def refused(self) -> tuple[int, str]:
        """Runs it where it cannot start; returns its exit code and what it says."""
        read, write = os.pipe()  # a lifeline that stays open
        try:
            done = subprocess.run(
                self._command, check=False, stdin=read, capture_output=True, text=True, timeout=30
            )
        finally:
            os.close(read)
            os.close(write)
        return done.returncode, done.stderr
