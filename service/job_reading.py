"""Lists of jobs: filters, and pages that stay right and equally quick however many jobs there are.

Each page is found by index alone: a filter of several values is one short index range for each of them,
and what lies in several ranges is merged.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import and_, tuple_, union_all
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from service.dataflow import SeenJob
from service.errors import InvalidPageTokenError
from service.job_state import STATES, TERMINAL_STATES
from service.job_store import Entry
from service.models import Attempt, Job

_CHUNK = 500


class Filters(NamedTuple):
    """What a list of jobs is narrowed to; None is no limit. `name` is the full name or its base."""

    states: Sequence[str] | None = None
    active: bool | None = None
    name: str | None = None
    pipeline: str | None = None


async def page(
    session: AsyncSession, filters: Filters, page_token: str | None, page_size: int
) -> tuple[list[Entry], str | None]:
    """Jobs, newest first, and the token of the next page. Raises InvalidPageTokenError."""
    before = None if page_token is None else read_page_token(page_token)
    ranges = [_newest(conditions, before, page_size + 1) for conditions in _ranges(filters)]
    if not ranges:
        return [], None
    ids: Any = ranges[0]
    if len(ranges) > 1:
        parts = union_all(*(select(each.subquery()) for each in ranges)).subquery()
        newest = (parts.c.created_at.desc(), parts.c.id.desc())
        ids = select(parts.c.id, parts.c.created_at).order_by(*newest).limit(page_size + 1)
    found = [row[0] for row in (await session.exec(ids)).all()]
    current = and_(col(Attempt.job_id) == col(Job.id), col(Attempt.number) == col(Job.attempt))
    statement = select(Job, Attempt).join(Attempt, current).where(col(Job.id).in_(found[:page_size]))
    rows = (await session.exec(statement)).all()
    shown = sorted((Entry(*row) for row in rows), key=lambda entry: _key(entry.job), reverse=True)
    return shown, write_page_token(shown[-1].job) if len(found) > page_size and shown else None


async def managed(session: AsyncSession, seen: Sequence[SeenJob]) -> set[str]:
    """The ids of those Dataflow jobs that are behind a job of ours, or may be once a launch is answered."""
    found: set[str] = set()
    for start in range(0, len(seen), _CHUNK):
        chunk = seen[start : start + _CHUNK]
        own = select(Attempt.dataflow_job_id).where(
            col(Attempt.dataflow_job_id).in_([each.id for each in chunk])
        )
        found.update(str(own_id) for own_id in (await session.exec(own)).all())
        waiting = (
            select(Attempt.job_name, Job.name)
            .join(Job, col(Job.id) == col(Attempt.job_id))
            .where(col(Attempt.ended_at).is_(None), col(Attempt.dataflow_job_id).is_(None))
        )
        names = {name or job_name for name, job_name in (await session.exec(waiting)).all()}
        found.update(each.id for each in chunk if each.name in names)
    return found


def _ranges(filters: Filters) -> Iterator[list[Any]]:
    """Conditions that hold for parts of what is asked for, no job in two of them; each has an index."""
    states, ended = filters.states, col(Job.ended_at)
    if filters.active is not None and (states or filters.name or filters.pipeline):
        # Who has ended is in a terminal state, and the other way round.
        chosen = STATES - TERMINAL_STATES if filters.active else TERMINAL_STATES
        states = sorted(chosen.intersection(states) if states else chosen)
    narrowed: list[Any] = [] if filters.pipeline is None else [col(Job.pipeline) == filters.pipeline]
    if filters.name is not None:
        names = [
            [col(Job.base_name) == filters.name],
            [col(Job.name) == filters.name, col(Job.base_name) != filters.name],
        ]
    else:
        names = [[]]
    for name in names:
        if states is not None:
            yield from ([*name, *narrowed, col(Job.state) == state] for state in dict.fromkeys(states))
        elif filters.active is not None and not name and not narrowed:
            yield [ended.is_(None) if filters.active else ended.is_not(None)]
        else:
            yield [*name, *narrowed]


def _newest(conditions: list[Any], before: tuple[datetime, str] | None, limit: int) -> Any:
    statement = select(Job.id, Job.created_at).where(*conditions)
    if before is not None:
        statement = statement.where(tuple_(col(Job.created_at), col(Job.id)) < before)
    return statement.order_by(col(Job.created_at).desc(), col(Job.id).desc()).limit(limit)


def _key(job: Job) -> tuple[datetime, str]:
    return job.created_at, job.id


def write_page_token(last: Job) -> str:
    """The opaque token of the page that follows `last`."""
    return base64.urlsafe_b64encode(msgspec.json.encode((last.created_at, last.id))).decode().rstrip("=")


def read_page_token(token: str) -> tuple[datetime, str]:
    """Raises InvalidPageTokenError."""
    try:
        text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        created_at, job_id = msgspec.json.decode(text, type=tuple[datetime, str])
        created_at = created_at.astimezone(UTC)
    except (binascii.Error, ValueError, OverflowError) as error:
        raise InvalidPageTokenError("The page token is not one that this service gave.") from error
    if "\0" in job_id:
        raise InvalidPageTokenError("The page token is not one that this service gave.")
    return created_at, job_id
