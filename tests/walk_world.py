"""The world of a random walk of job control: replicas that may die, a clock, and workers by hand."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from sqlmodel import col, or_, select

from service.clients import Clients
from service.config import Settings
from service.dataflow import Dataflow
from service.db import Database
from service.job_state import is_terminal
from service.local.dataflow import DataflowServer
from service.models import Job
from service.reconciler import Reconciler
from tests.hand_fleet import HandFleet

TEMPLATE = "gs://tests/walk.json"
OTHER_TEMPLATE = "gs://tests/walk-2.json"
GRACE_SECONDS = 60
START = "2026-01-01T00:00:00+00:00"


class CrashError(BaseException):
    """The process is gone; nothing in it may catch this."""


class FrailDatabase(Database):
    """A database whose user dies at the transaction that `fuse` counts down to."""

    fuse: int | None = None

    def _burn(self) -> None:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                self.fuse = None
                raise CrashError

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        self._burn()
        async with super().transaction() as session:
            yield session
        self._burn()


class Broken(logging.Handler):
    """What the reconciler reports as broken and goes on from; here each is a broken law."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.reports: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.reports.append(self.format(record))


class WalkWorld:
    """Two replicas on one database and one Dataflow; `seen` is how each job was at the last look."""

    def __init__(self, server: DataflowServer, settings: Settings, seed: int) -> None:
        self.chance = random.Random(seed)
        self.server = server
        self.settings = settings
        self.database = FrailDatabase(settings)
        self.clients = Clients(settings)
        self.dataflow = Dataflow(self.clients, settings)
        self.now = datetime.fromisoformat(START)
        self.replicas = [self._replica(), self._replica()]
        self.seen: dict[str, tuple[str, str, int]] = {}
        self.broken = Broken()
        logging.getLogger("service.reconciler").addHandler(self.broken)

    @property
    def fleet(self) -> HandFleet:
        fleet = self.server._fleet
        assert isinstance(fleet, HandFleet)
        return fleet

    def _replica(self) -> Reconciler:
        return Reconciler(self.database, self.dataflow, self.settings, lambda: self.now)

    async def close(self) -> None:
        logging.getLogger("service.reconciler").removeHandler(self.broken)
        self.server.faults.set([])
        await self.clients.close()
        await self.database.close()

    async def jobs(self, *ids: str) -> list[Job]:
        async with self.database.session() as session:
            wanted = or_(col(Job.ended_at).is_(None), col(Job.id).in_(ids))
            recent = select(Job).where(wanted)
            active = list((await session.exec(recent)).all())
            gone = [job_id for job_id in self.seen if job_id not in {job.id for job in active}]
            gone = [job_id for job_id in gone if not is_terminal(self.seen[job_id][0])]
            ended = (await session.exec(select(Job).where(col(Job.id).in_(gone)))).all()
        return [*active, *ended]

    async def _any_job(self) -> Job | None:
        jobs = await self.jobs()
        return self.chance.choice(jobs) if jobs else None

    def _control(self) -> Any:
        return self.chance.choice(self.replicas).control
