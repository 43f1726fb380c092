"""Requests that carry an Idempotency-Key: each takes effect once, and its answer is kept for a day.

A key is taken in the transaction that commits what the request does, so no crash can leave one without
the other. https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, NamedTuple

import msgspec
from fastapi import Header, Response
from pydantic import BaseModel
from sqlalchemy import delete, tuple_
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from service.db import Database
from service.errors import (
    DatabaseUnavailableError,
    IdempotencyInFlightError,
    IdempotencyMismatchError,
    InvalidIdempotencyKeyError,
)
from service.models import IdempotencyKey

log = logging.getLogger(__name__)

KEPT = timedelta(hours=24)
SWEPT_AT_ONCE = 500
_SWEEP_SECONDS = 60.0
_LONGEST_SCOPE = 128
_CALLER_BYTES = 8
_KEY = re.compile(r"[\x21-\x7e]{1,200}")


class KeyedRequest(NamedTuple):
    """What the answer belongs to; `fingerprint` tells whether two requests ask for the same."""

    scope: str
    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An earlier request with the key whose process ended before it had an answer."""

    job_id: str | None
    since: datetime


def idempotency_key(
    idempotency_key: Annotated[
        str | None,
        Header(
            description="The same request sent again under one key takes effect once",
            json_schema_extra={"pattern": "^[!-~]{1,200}$"},
        ),
    ] = None,
) -> str | None:
    """The header's key, without the quotes of a structured field. Raises InvalidIdempotencyKeyError."""
    if idempotency_key is None:
        return None
    key = idempotency_key.strip()
    if len(key) > 2 and key.startswith('"') and key.endswith('"'):
        key = key[1:-1]
    if not _KEY.fullmatch(key):
        raise InvalidIdempotencyKeyError("Idempotency-Key is 1 to 200 visible ASCII characters.")
    return key


def keyed(key: str | None, scope: str, body: BaseModel | None, by: str) -> KeyedRequest | None:
    """The request under its key; `scope` is the method and the path. None where it has no key.

    The keys of one caller, `by` its name in the history, mean nothing to another.
    """
    if key is None:
        return None
    caller = hashlib.blake2s(by.encode(), digest_size=_CALLER_BYTES).hexdigest()
    scope = f"{scope[: _LONGEST_SCOPE - len(caller) - 1]} {caller}"
    asked = body.model_dump(mode="json", exclude_unset=True) if body else {}
    text = msgspec.json.encode(asked, order="deterministic")
    return KeyedRequest(scope, key, hashlib.sha256(text).hexdigest())


async def stored(session: AsyncSession, request: KeyedRequest, now: datetime) -> Response | None:
    """The answer that the same request was given before."""
    row = await session.get(IdempotencyKey, (request.scope, request.key))
    if row is None or row.status is None or row.created_at <= now - KEPT:
        return None
    return _replayed(row) if row.request_hash == request.fingerprint else None


async def take(
    session: AsyncSession,
    request: KeyedRequest,
    now: datetime,
    *,
    busy_seconds: float,
    job_id: str | None = None,
) -> Response | Unfinished | None:
    """Takes the key for `busy_seconds`, in the transaction of `session`; None where it was free.

    Otherwise the stored answer, or what an earlier process left unfinished, which is now this one's to
    answer. Raises IdempotencyMismatchError, IdempotencyInFlightError, and IntegrityError where another
    transaction took the key at the same time: then begin anew.
    """
    row = await _row(session, request)
    if row and row.created_at <= now - KEPT:
        await session.delete(row)
        await session.flush()
        row = None
    until = now + timedelta(seconds=busy_seconds)
    if row is None:
        session.add(
            IdempotencyKey(
                scope=request.scope,
                key=request.key,
                request_hash=request.fingerprint,
                job_id=job_id,
                created_at=now,
                locked_until=until,
            )
        )
        await session.flush()
        return None
    if row.request_hash != request.fingerprint:
        raise IdempotencyMismatchError("Another body was sent under this key. Use a new one.")
    if row.status is not None:
        return _replayed(row)
    if row.locked_until > now:
        seconds = min(5, int((row.locked_until - now).total_seconds()) + 1)
        raise IdempotencyInFlightError("It is not answered yet.", retry_after_seconds=seconds)
    row.locked_until = until
    return Unfinished(row.job_id, row.created_at)


class Answers:
    """Keeps the answers of keyed requests, and forgets them after a day."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._swept_at = 0.0

    async def keep(self, request: KeyedRequest | None, response: Response, now: datetime) -> None:
        """Stores the answer; where the database is away the next request finds out what became of it."""
        if request is None:
            return
        try:
            async with self._database.transaction() as session:
                row = await _row(session, request)
                if row is not None and row.request_hash == request.fingerprint and row.status is None:
                    row.status = response.status_code
                    row.media_type = response.headers.get("content-type")
                    row.location = response.headers.get("location")
                    row.body = bytes(response.body).decode()
                if time.monotonic() - self._swept_at >= _SWEEP_SECONDS:
                    self._swept_at = time.monotonic()
                    await sweep(session, now)
        except DatabaseUnavailableError:
            log.warning("the answer to a keyed request could not be kept")

    async def forget(self, request: KeyedRequest | None) -> None:
        """Gives the key free of a request that had no effect."""
        if request is None:
            return
        try:
            async with self._database.transaction() as session:
                row = await _row(session, request)
                if row is not None and row.status is None and row.request_hash == request.fingerprint:
                    await session.delete(row)
        except DatabaseUnavailableError:
            log.warning("the key of a request without effect could not be given free")


async def sweep(session: AsyncSession, now: datetime) -> None:
    """Deletes some of the keys that are older than a day, the oldest first."""
    pair: Any = tuple_(col(IdempotencyKey.scope), col(IdempotencyKey.key))
    old = (
        select(IdempotencyKey.scope, IdempotencyKey.key)
        .where(col(IdempotencyKey.created_at) <= now - KEPT)
        .order_by(col(IdempotencyKey.created_at))
        .limit(SWEPT_AT_ONCE)
    )
    await session.exec(delete(IdempotencyKey).where(pair.in_(old)))


async def _row(session: AsyncSession, request: KeyedRequest) -> IdempotencyKey | None:
    statement = select(IdempotencyKey).where(
        col(IdempotencyKey.scope) == request.scope, col(IdempotencyKey.key) == request.key
    )
    return (await session.exec(statement.with_for_update())).first()


def _replayed(row: IdempotencyKey) -> Response:
    headers = {"Idempotency-Replayed": "true"} | ({"Location": row.location} if row.location else {})
    return Response(row.body or "", row.status or 200, headers, row.media_type)
