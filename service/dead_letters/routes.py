"""The /dead-letters routes: look at what could not become a row, and have it published again."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

import msgspec
import sqlalchemy.exc
from fastapi import APIRouter, Depends, Query, Request, Response

from service.auth import actor
from service.bodies import json_only
from service.db import Database
from service.dead_letters import replay_store
from service.dead_letters.letters import Position
from service.dead_letters.replayer import Replayer
from service.dead_letters.table import DeadLetterTable
from service.dead_letters.view import (
    DeadLetterPage,
    DeadLetterQuery,
    NewReplay,
    ReplayPage,
    ReplayView,
    show_count,
    show_letter,
    show_replay,
    stored,
)
from service.errors import (
    BigQueryRefusedError,
    BigQueryUnavailableError,
    BodyTimeoutError,
    DatabaseUnavailableError,
    DeadLetterTableNotFoundError,
    InvalidPageTokenError,
    InvalidRequestError,
    ReplayInProgressError,
    ReplayNotFoundError,
    UnsupportedMediaTypeError,
)
from service.logs import current_request_id
from service.models import ID_LENGTH, Replay, new_id, utc_now
from service.problems import responses

router = APIRouter(prefix="/dead-letters", tags=["dead letters"])

_MOST_SKIPPED = 10_000_000
_REPLAY_ID = re.compile(f"[0-9a-z]{{{ID_LENGTH}}}")


class Desk(NamedTuple):
    """What the routes work with, as the application was made with it."""

    database: Database
    table: DeadLetterTable
    replayer: Replayer


def desk(request: Request) -> Desk:
    state = request.app.state
    return Desk(state.database, state.dead_letters, state.replayer)


AtDesk = Annotated[Desk, Depends(desk)]
PageToken = Annotated[str | None, Query(max_length=256)]
PageSize = Annotated[int, Query(ge=1, le=200)]


@router.get(
    "",
    summary="List dead letters",
    responses=responses(
        InvalidPageTokenError,
        InvalidRequestError,
        DeadLetterTableNotFoundError,
        BigQueryRefusedError,
        BigQueryUnavailableError,
    ),
)
async def list_dead_letters(desk: AtDesk, asked: Annotated[DeadLetterQuery, Query()]) -> DeadLetterPage:
    """Messages that could not become a row, newest first, and on the first page how many by reason.

    A query of BigQuery each time, which costs what it reads: `since` keeps that small.
    """
    filters = asked.filters()
    token = asked.page_token
    after = Position(*read_page_token(token, tuple[datetime, int])) if token else None
    if after and not 0 <= after.skip <= _MOST_SKIPPED:
        raise not_our_token()
    rows, following = await desk.table.page(filters, after, asked.page_size)
    counts = None if after else [show_count(each) for each in await desk.table.counts(filters)]
    return DeadLetterPage(
        dead_letters=[show_letter(row) for row in rows],
        counts=counts,
        next_page_token=write_page_token(following) if following else None,
    )


@router.post(
    "/replay",
    status_code=202,
    summary="Publish dead letters again",
    dependencies=[Depends(json_only)],
    responses={
        202: {"headers": {"Location": {"description": "The replay", "schema": {"type": "string"}}}},
        **responses(
            BodyTimeoutError,
            ReplayInProgressError,
            UnsupportedMediaTypeError,
            InvalidRequestError,
            DatabaseUnavailableError,
        ),
    },
)
async def replay_dead_letters(
    asked: NewReplay, desk: AtDesk, request: Request, response: Response
) -> ReplayView:
    """Begins a replay and answers at once; look at it to see how far it has come.

    A letter that was replayed before is left out, unless `again` asks for it. What fails again becomes
    a new letter.
    """
    now = utc_now()
    replay = Replay(
        id=new_id(now),
        state=replay_store.RUNNING,
        dry_run=asked.dry_run,
        again=asked.again,
        filters=stored(asked.filters_before(now)),
        most_letters=asked.most_letters,
        actor=actor(request),
        request_id=current_request_id.get() or None,
        created_at=now,
    )
    try:
        async with desk.database.transaction() as session:
            refuse_if_under_way(await replay_store.active(session))
            session.add(replay)
    except sqlalchemy.exc.IntegrityError:  # another request was faster
        async with desk.database.session() as session:
            refuse_if_under_way(await replay_store.active(session))
        raise DatabaseUnavailableError("Another replay began and ended meanwhile. Try again.") from None
    desk.replayer.wake()
    response.headers["Location"] = f"/dead-letters/replays/{replay.id}"
    return show_replay(replay)


@router.get(
    "/replays",
    summary="List replays",
    responses=responses(InvalidPageTokenError, InvalidRequestError, DatabaseUnavailableError),
)
async def list_replays(desk: AtDesk, page_size: PageSize = 50, page_token: PageToken = None) -> ReplayPage:
    """Replays, newest first."""
    before = read_page_token(page_token, tuple[datetime, str]) if page_token else None
    if before and "\0" in before[1]:
        raise not_our_token()
    async with desk.database.session() as session:
        replays, more = await replay_store.page(session, before, page_size)
    token = write_page_token((replays[-1].created_at, replays[-1].id)) if more else None
    return ReplayPage(replays=[show_replay(each) for each in replays], next_page_token=token)


@router.get(
    "/replays/{replay_id}",
    summary="Look at a replay",
    responses=responses(ReplayNotFoundError, DatabaseUnavailableError),
)
async def get_replay(replay_id: str, desk: AtDesk) -> ReplayView:
    """How far a replay has come."""
    return show_replay(await find_replay(replay_id, desk))


@router.post(
    "/replays/{replay_id}/cancel",
    summary="Cancel a replay",
    responses=responses(ReplayNotFoundError, DatabaseUnavailableError),
)
async def cancel_replay(replay_id: str, desk: AtDesk, request: Request) -> ReplayView:
    """Ends a replay after the letters that are in the outbox already; those are published."""
    require_replay_id(replay_id)
    async with desk.database.transaction() as session:
        await replay_store.cancel(session, replay_id, utc_now(), actor(request))
    return show_replay(await find_replay(replay_id, desk))


def refuse_if_under_way(replay: Replay | None) -> None:
    if replay:
        raise ReplayInProgressError(
            f"Replay {replay.id} is under way. Wait for its end, or cancel it.",
            members={"replay_id": replay.id},
        )


async def find_replay(replay_id: str, desk: Desk) -> Replay:
    """The replay; raises ReplayNotFoundError."""
    require_replay_id(replay_id)
    async with desk.database.session() as session:
        found = await replay_store.find(session, replay_id)
    if found is None:
        raise not_found(replay_id)
    return found


def require_replay_id(replay_id: str) -> None:
    if not _REPLAY_ID.fullmatch(replay_id):
        raise not_found(replay_id)


def not_found(replay_id: str) -> ReplayNotFoundError:
    return ReplayNotFoundError(f"There is no replay {replay_id[:64]!r}.")


def not_our_token() -> InvalidPageTokenError:
    return InvalidPageTokenError("The page token is not one that this service gave.")


def write_page_token(place: tuple[datetime, Any]) -> str:
    """The opaque token of the page that follows `place`."""
    return base64.urlsafe_b64encode(msgspec.json.encode(tuple(place))).decode().rstrip("=")


def read_page_token(token: str, kind: Any) -> Any:
    """The place that `write_page_token` was given, a tuple of type `kind`. Raises InvalidPageTokenError."""
    try:
        text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        at, rest = msgspec.json.decode(text, type=kind)
        return at.astimezone(UTC), rest
    except (binascii.Error, ValueError, OverflowError) as error:
        raise not_our_token() from error
