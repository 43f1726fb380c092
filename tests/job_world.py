"""A world for the tests of job control: a real database, the local Dataflow server, and the /jobs routes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from service import job_store, jobs, problems
from service.clients import Clients
from service.config import Settings
from service.dataflow import Dataflow
from service.db import Database
from service.google_rest import GoogleRest
from service.job_bodies import NewJob
from service.job_request import new_job
from service.job_store import Entry
from service.local.dataflow import DataflowServer
from service.local.faults import Fault
from service.local.templates import Template
from service.models import Job, utc_now
from service.reconciler import Reconciler

TEMPLATE = "gs://tests/waiting.json"
STRICT_TEMPLATE = "gs://tests/strict.json"
BATCH_TEMPLATE = "gs://tests/batch.json"
DEADLINE_SECONDS = 15.0
PARAMETERS = ("input_subscription", "output_table", "dead_letter_table", "gate", "break_with")


class Clock:
    """The real time, and what the test has added to it."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return utc_now() + self.ahead

    def advance(self, **units: float) -> None:
        self.ahead += timedelta(**units)


class World:
    def __init__(self, settings: Settings, server: DataflowServer, database: Database) -> None:
        self.settings = settings
        self.server = server
        self.database = database
        self.clock = Clock()
        self.clients = Clients(settings)
        self.dataflow = Dataflow(self.clients, settings)
        self.reconciler = self.another_reconciler()
        self.app = FastAPI()
        problems.install(self.app)
        self.app.include_router(jobs.router)
        self.desk = jobs.Desk(
            settings, database, self.dataflow, self.reconciler, GoogleRest(self.clients), self.clock
        )
        self.app.state.desk = self.desk
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://service")

    def another_reconciler(self) -> Reconciler:
        return Reconciler(self.database, self.dataflow, self.settings, self.clock)

    def fail(self, *faults: Fault) -> None:
        """Sets the faults of Dataflow; none ends them."""
        self.server.faults.set(faults)

    def calls(self) -> dict[str, int]:
        return dict(self.server.faults.calls)

    async def launch(self, **body: Any) -> dict[str, Any]:
        answer = await self.http.post("/jobs", json=body)
        assert answer.status_code == 202, answer.text
        return answer.json()

    async def insert(
        self, *, dataflow_job_id: str | None = None, state: str = "LAUNCHING", **columns: Any
    ) -> Job:
        """Writes a job down as a process does that dies right after."""
        asked = NewJob(shared_subscription=True)
        job = new_job(asked, self.settings, self.clock())
        for name, value in columns.items():
            setattr(job, name, value)
        job.state = state
        async with self.database.transaction() as session:
            await job_store.insert(session, job, "test")
            await session.flush()
            entry = await job_store.lock(session, job.id)
            assert entry
            entry.attempt.dataflow_job_id = dataflow_job_id
        return job

    async def entry(self, job_id: str) -> Entry:
        async with self.database.session() as session:
            entry = await job_store.find(session, job_id)
        assert entry
        return entry

    async def show(self, job_id: str) -> dict[str, Any]:
        answer = await self.http.get(f"/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def history(self, job_id: str) -> list[str]:
        """The kinds of the job's events; a change of state as FROM>TO."""
        events = (await self.http.get(f"/jobs/{job_id}/events")).json()["events"]
        return [
            f"{event['detail']['from']}>{event['detail']['to']}"
            if event["kind"] == "state"
            else event["kind"]
            for event in events
        ]

    async def until(self, job_id: str, *states: str) -> dict[str, Any]:
        """Ticks until the job is in one of the states."""
        until = time.monotonic() + DEADLINE_SECONDS
        while True:
            await self.reconciler.tick()
            job = (await self.entry(job_id)).job
            if job.state in states:
                return await self.show(job_id)
            assert time.monotonic() < until, f"{job.state} ({job.cause}) is not {states}"
            await asyncio.sleep(0.02)

    async def until_dataflow_has_a_job(self) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                if self.server._fleet.jobs:
                    return
                await asyncio.sleep(0.01)

    async def dataflow_jobs(self, name: str) -> list[Any]:
        return await self.dataflow.find_by_name(self.settings.project, self.settings.region, name)


@asynccontextmanager
async def make_world(directory: Path, database_url: str, **overrides: Any) -> AsyncIterator[World]:
    metadata = directory / "strict.json"
    listed = [{"name": name, "isOptional": True} for name in PARAMETERS]
    metadata.write_text(json.dumps({"name": "strict", "parameters": listed}))
    batch = directory / "batch.json"
    batch.write_text(json.dumps({"name": "batch", "streaming": False, "parameters": listed}))
    templates = {
        TEMPLATE: Template("tests.waiting_job"),
        STRICT_TEMPLATE: Template("tests.waiting_job", metadata),
        BATCH_TEMPLATE: Template("tests.waiting_job", batch),
    }
    async with DataflowServer(directory / "dataflow", templates=templates) as server:
        values: dict[str, Any] = {
            "template_path": TEMPLATE,
            "dataflow_emulator_host": server.address,
            "dataflow_deadline_seconds": 3.0,
            "launch_grace_seconds": 60.0,
            "reconcile_interval_seconds": 0.05,
        }
        settings = Settings(_env_file=None, database_url=database_url, **(values | overrides))
        database = Database(settings)
        world = World(settings, server, database)
        try:
            yield world
        finally:
            await world.http.aclose()
            await world.desk.close()
            await world.clients.close()
            await database.close()


def outage(*methods: str, code: str = "UNAVAILABLE") -> Iterable[Fault]:
    return [Fault(method=method, code=code) for method in methods or ("*",)]
