"""What other terminals know of the stack that runs on a data directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any, Literal

LOCK_FILE = "stack.lock"
RECORD_FILE = "stack.json"


def read_running(data_dir: Path) -> dict[str, str] | None:
    """The environment of the stack that runs on the data directory; None where none has started."""
    environment = _read_record(data_dir).get("environment")
    return environment and {str(name): str(value) for name, value in environment.items()}


def running_database(data_dir: Path) -> str:
    """The masked URL of the database that the service beside the running stack has; empty without them."""
    record = _read_record(data_dir)
    return str(record.get("database", "")) if "SIGNIN_URL" in record.get("environment", {}) else ""


def end_of_last(data_dir: Path) -> Literal["", "stopped", "killed"]:
    """How the last stack on the directory ended; empty where none has, or one runs."""
    with contextlib.suppress(OSError), (data_dir / LOCK_FILE).open() as lock:
        if take(lock, fcntl.LOCK_SH):
            # One that is stopped takes its record away.
            return "killed" if (data_dir / RECORD_FILE).exists() else "stopped"
    return ""


def _read_record(data_dir: Path) -> dict[str, Any]:
    """Empty where no stack runs, or one is starting where another was killed and has left its record."""
    with contextlib.suppress(OSError, ValueError, KeyError), (data_dir / LOCK_FILE).open() as lock:
        if not take(lock, fcntl.LOCK_SH):
            record: dict[str, Any] = json.loads((data_dir / RECORD_FILE).read_text())
            os.kill(record["pid"], 0)
            return record
    return {}


def take(file: IO[str], kind: int) -> bool:
    """Whether the lock was to be had at once; `kind` is one of fcntl's."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        return True
    return False
