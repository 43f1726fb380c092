"""The jobs on disk: one JSON file for each, replaced whole, in a directory that one process holds."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from pathlib import Path
from typing import Any

import msgspec
from google.protobuf import json_format

from service.local.dataflow.job import (
    MESSAGES_STORED,
    LocalJob,
    Message,
    Metric,
    ProtoJob,
    ProtoLaunch,
    Scaling,
)

log = logging.getLogger(__name__)


class DataDirInUseError(Exception):
    """Another process serves this data directory."""


class _StoredJob(msgspec.Struct):
    number: int
    job: dict[str, Any]
    launch: dict[str, Any]
    messages: list[Message]
    metrics: list[Metric]
    scalings: list[Scaling] = []


class JobStore:
    """The job files under `data_dir/jobs`. Writes survive the death of the process, not of the machine."""

    def __init__(self, data_dir: Path) -> None:
        self._lock_path = data_dir / "dataflow.lock"
        self._jobs = data_dir / "jobs"
        self._lock: int | None = None

    def open(self) -> None:
        """Takes the directory for this process. Raises DataDirInUseError or OSError."""
        self._jobs.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise DataDirInUseError(
                f"{self._lock_path.parent} is in use by another local Dataflow server (process {holder}). "
                "End that one, or give this one another data directory."
            ) from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        self._lock = lock

    def close(self) -> None:
        """Gives the directory free."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def load(self) -> list[LocalJob]:
        """Every stored job, in the order of their launches. A file that cannot be read is set aside."""
        found: list[LocalJob] = []
        for path in self._jobs.glob("*.json"):
            try:
                found.append(_read(path))
            except (
                msgspec.MsgspecError,
                json_format.ParseError,
                UnicodeDecodeError,
                IsADirectoryError,
            ) as error:
                log.warning("%s is not a job and is set aside: %s", path, error)
                path.rename(path.with_suffix(".unreadable"))
        return sorted(found, key=lambda job: job.number)

    def save(self, job: LocalJob) -> None:
        """Writes the job with its newest messages. Raises OSError."""
        item = _StoredJob(
            number=job.number,
            job=json_format.MessageToDict(job.proto),
            launch=json_format.MessageToDict(job.launch),
            messages=list(job.messages)[-MESSAGES_STORED:],
            metrics=list(job.metrics.values()),
            scalings=list(job.scalings),
        )
        path = self._path(job)
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(item))
        temporary.replace(path)
        job.changed = False

    def delete(self, job: LocalJob) -> None:
        """Forgets the job."""
        with contextlib.suppress(FileNotFoundError):
            self._path(job).unlink()

    def _path(self, job: LocalJob) -> Path:
        return self._jobs / f"{job.id}.json"


def _read(path: Path) -> LocalJob:
    item = msgspec.json.decode(path.read_bytes(), type=_StoredJob)
    proto = json_format.ParseDict(item.job, ProtoJob(), ignore_unknown_fields=True)
    if proto.id != path.stem:
        raise json_format.ParseError(f"it holds the job {proto.id!r}")
    launch = json_format.ParseDict(item.launch, ProtoLaunch(), ignore_unknown_fields=True)
    return LocalJob(item.number, proto, launch, item.messages, item.metrics, item.scalings)
