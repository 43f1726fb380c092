"""The `signin` command as a user runs it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from tests.running import clean_environment


def signin(*arguments, cwd, timeout=60, **environment):
    """Runs the command as a user does; returns the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        check=False,
        cwd=cwd,
        env=clean_environment() | {"COLUMNS": "200", "HOME": str(cwd)} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
