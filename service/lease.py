"""A lease in the database: a piece of work that one replica does at a time, as far as time can tell.

The clock is the database's, so those of the machines may differ as they like. A holder that stood still for
longer than the lease may still think that it has it. What must not happen twice is therefore guarded by the
rows themselves; the lease saves work, and its token tells a holder that it was overtaken.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy.exc
from sqlalchemy import ColumnElement, CursorResult, func, or_, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from service.db import Database
from service.errors import DatabaseUnavailableError
from service.models import Lease as LeaseRow
from service.models import UtcDateTime, utc_now

log = logging.getLogger(__name__)

_HOST_CHARACTERS = 40  # of 64 that the column has
RENEWALS = 3  # in the time for which a lease is taken


class Lease:
    """The lease `name` for one holder, which is this object. For use within one event loop."""

    def __init__(
        self,
        database: Database,
        name: str,
        seconds: float,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        # The end of a host's name is what tells the pods of a deployment apart.
        self.holder = f"{socket.gethostname()[-_HOST_CHARACTERS:]}-{os.getpid()}-{secrets.token_hex(6)}"
        self.token: int | None = None
        self._taken_at = float("-inf")  # by the monotonic clock
        self._database = database
        self._name = name
        self._seconds = seconds
        self._clock = clock

    async def take(self) -> bool:
        """Takes or renews the lease; False where another holds it. `token` is set while it is held."""
        began_at = time.monotonic()
        try:
            async with self._database.transaction() as session:
                now = await self.now(session)
                token = await self._take(session, now, now + timedelta(seconds=self._seconds))
        except sqlalchemy.exc.IntegrityError:
            token = None  # another has made the row at the same time
        self.token = token  # only now: what is not committed is another's to have
        self._taken_at = began_at
        return self.token is not None

    @property
    def is_held(self) -> bool:
        """Whether it is held as far as this process can know: what it could not renew has come to its end."""
        return self.token is not None and time.monotonic() - self._taken_at < self._seconds

    async def holds(self, session: AsyncSession) -> bool:
        """Whether nobody has taken the lease since, within the transaction of `session`."""
        statement = select(LeaseRow.token).where(*self._ours()).with_for_update(read=True)
        return self.token is not None and (await session.exec(statement)).first() == self.token

    async def row(self, session: AsyncSession) -> LeaseRow | None:
        """Who holds it, or held it last; None where nobody ever did."""
        return (await session.exec(select(LeaseRow).where(col(LeaseRow.name) == self._name))).first()

    async def release(self) -> None:
        """Gives the lease free at once; nothing happens where it is not held."""
        if self.token is None:
            return
        free = update(LeaseRow).where(*self._ours(), col(LeaseRow.token) == self.token)
        self.token = None
        async with self._database.transaction() as session:
            await session.exec(free.values(expires_at=await self.now(session)))

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Renews the held lease within the block, which may last longer than the lease."""
        task = asyncio.create_task(self._renew(), name=f"renew the lease {self._name}")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._seconds / RENEWALS)
            with suppress(DatabaseUnavailableError):
                if not await self.take():
                    log.warning("the lease %s was taken by another replica", self._name)
                    return

    async def now(self, session: AsyncSession) -> datetime:
        """The database's time; on SQLite this machine's, where all its processes are."""
        if self._clock:
            return self._clock()
        if self._database.is_sqlite:
            return utc_now()
        return (await session.exec(select(func.clock_timestamp(type_=UtcDateTime)))).one()

    def _ours(self) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        """What finds the row while this is its holder."""
        return col(LeaseRow.name) == self._name, col(LeaseRow.holder) == self.holder

    async def _take(self, session: AsyncSession, now: datetime, expires_at: datetime) -> int | None:
        """The token under which the lease is held; None where another has it."""
        own = col(LeaseRow.name) == self._name
        if self.token is not None:
            renew = update(LeaseRow).where(*self._ours(), col(LeaseRow.token) == self.token)
            if _changed(await session.exec(renew.values(expires_at=expires_at))):
                return self.token
        free = or_(col(LeaseRow.expires_at) <= now, col(LeaseRow.holder) == self.holder)
        values = {"holder": self.holder, "token": LeaseRow.token + 1, "expires_at": expires_at}
        if _changed(await session.exec(update(LeaseRow).where(own, free).values(values))):
            return (await session.exec(select(LeaseRow.token).where(own))).one()
        if (await session.exec(select(LeaseRow.name).where(own))).first() is None:
            session.add(LeaseRow(name=self._name, holder=self.holder, token=1, expires_at=expires_at))
            return 1
        return None


def _changed(result: CursorResult[Any]) -> bool:
    return result.rowcount > 0
