"""What happens to jobs, in the log: whoever is woken at night reads that first, and the history after it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy import event
from sqlmodel.ext.asyncio.session import AsyncSession

from service.models import Job

log = logging.getLogger(__name__)

# Entries that tell why something is not done yet: looks repeat them, and the history tells each once.
NOTES = frozenset({"launch_unanswered", "stop_unanswered", "scale_unanswered", "drain_deadline_passed"})
_LOUD = NOTES | {
    "denied",
    "replacement_unseen",
    "restart_scheduled",
    "rolled_back",
    "scale_refused",
    "update_failed",
}
_ENDS = {"FAILED": logging.ERROR, "LOST": logging.ERROR, "REJECTED": logging.WARNING}
# A cause may be pages of a worker's output: its first and its last line tell most, the history has all.
_LINE_CHARACTERS = 200


def tell(session: AsyncSession, job: Job, kind: str, detail: Mapping[str, Any], actor: str) -> None:
    """Logs an entry of a job's history when the session's transaction is committed; never, if it is not."""
    about = {"id": job.id, "name": job.name, "kind": kind, "actor": actor}
    about |= {name: detail[name] for name in ("from", "to", "attempt", "dataflow_job_id") if name in detail}
    said, level = _said(kind, detail), _level(kind, detail)
    arguments = (about["name"], about["id"], said)

    def committed(_: object) -> None:
        log.log(level, "job %s (%s): %s", *arguments, extra={"fields": {"job": about}})

    event.listen(session.sync_session, "after_commit", committed, once=True)


def _level(kind: str, detail: Mapping[str, Any]) -> int:
    if kind == "state":
        return _ENDS.get(detail["to"], logging.INFO)
    return logging.WARNING if kind in _LOUD else logging.INFO


def _said(kind: str, detail: Mapping[str, Any]) -> str:
    what = kind.replace("_", " ")
    if "from" in detail:  # two states, or two attempts
        change = f"{detail['from']} to {detail['to']}"
        what = f"attempt {detail['attempt']}: {change}" if kind == "attempt_state" else f"{what} {change}"
    lines = str(detail.get("cause") or "").strip().splitlines()
    if len(lines) > 1:
        lines[1:] = ["...", lines[-1]]
    cause = " ".join(line.strip()[:_LINE_CHARACTERS] for line in lines)
    return f"{what}: {cause}" if cause else what
