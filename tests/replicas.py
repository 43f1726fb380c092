"""Replicas on one PostgreSQL behind a balancer, each with its own wire to Dataflow, and what to count."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from service.db import schema
from service.local.dataflow import DataflowServer
from service.local.templates import Template
from tests.balancer import Balancer
from tests.dataflow_tap import Call, tapped
from tests.job_world import PARAMETERS
from tests.pubsub_topic import make_topic, pull_all
from tests.replica_load import Load
from tests.server_process import Server, local_pubsub, service

TEMPLATE = "gs://tests/waiting.json"
DEADLINE_SECONDS = 40.0
LEASE_SECONDS = 6.0
SETTINGS = {
    "SIGNIN_REQUIRE_AUTHENTICATION": "true",
    "SIGNIN_RECONCILE_INTERVAL_SECONDS": "0.1",
    "SIGNIN_RECONCILE_LEASE_SECONDS": str(LEASE_SECONDS),
    "SIGNIN_CONTROL_REQUESTS_PER_SECOND": "50",
    "SIGNIN_KEY_REFRESH_SECONDS": "0.5",
}
# What the database itself saw of the lease, by its own clock.
LEASE_LOG = """
CREATE TABLE lease_log (at double precision, name text, holder text, token bigint);
CREATE FUNCTION log_lease() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO lease_log VALUES (extract(epoch FROM clock_timestamp()), NEW.name, NEW.holder, NEW.token);
  RETURN NULL; END $$;
CREATE TRIGGER lease_log AFTER INSERT OR UPDATE ON leases FOR EACH ROW EXECUTE FUNCTION log_lease();
"""


@dataclass
class Verdict:
    """What was counted; `complaints` is empty where every promise was kept."""

    answered: int = 0
    arrived: int = 0
    copies: int = 0
    failed_while_stopping: int = 0
    terms: int = 0
    looks: int = 0
    takeover_seconds: list[float] = field(default_factory=list)
    revoked_seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)

    def summary(self) -> str:
        slowest = max(self.takeover_seconds, default=0.0)
        return (
            f"{self.answered:,} answered with 2xx, {self.arrived:,} of them arrived under their id "
            f"({self.copies:,} further copies); answers {dict(self.statuses)}; "
            f"{self.looks:,} looks at all jobs in {self.terms} terms of the lease, taken over within "
            f"{slowest:.1f} s; {self.failed_while_stopping} requests failed while a replica stopped gently; "
            f"a revoked key was refused by every replica after {self.revoked_seconds:.1f} s"
        )


class Turmoil:
    """The replicas and what they stand on."""

    def __init__(self, directory: Path, database_url: str, pubsub: str, dataflow: DataflowServer) -> None:
        self.calls: list[Call] = []
        self.replicas: dict[str, Server] = {}
        self.verdict = Verdict()
        self.balancer = Balancer()
        self.schema_changes = 1  # how many processes are to find a schema that they must change
        self.drained: list[str] = []
        self._directory = directory
        self._database_url = database_url
        self._pubsub = pubsub
        self._dataflow = dataflow
        self._taps = AsyncExitStack()
        self._pids: dict[int, str] = {}
        self._started = 0

    async def start(self, count: int = 1, release: Path | None = None) -> None:
        """Starts replicas at once, each of which migrates first, and takes them into the balancer.

        `release` is the tree of another release of the service; None is this one.
        """
        metadata = self._directory / "template.json"
        taken = [{"name": name, "isOptional": True} for name in PARAMETERS]
        metadata.write_text(json.dumps({"name": "waiting", "parameters": taken}))
        replicas = {}
        for _ in range(count):
            self._started += 1
            name = f"replica-{self._started}"
            address = await self._taps.enter_async_context(tapped(self._dataflow.address, name, self.calls))
            folder = self._directory / name
            folder.mkdir()
            values = SETTINGS | {
                "DATAFLOW_EMULATOR_HOST": address,
                "SIGNIN_TEMPLATE_PATH": TEMPLATE,
                "SIGNIN_TEMPLATE_METADATA": str(metadata),
            }
            if release:
                values["PYTHONPATH"] = str(release)
            replicas[name] = service(
                folder, self._pubsub, database_url=self._database_url, options=["--migrate"], **values
            )
        await asyncio.gather(*(asyncio.to_thread(replica.start) for replica in replicas.values()))
        self.replicas |= replicas
        self._pids |= {replica.pid: name for name, replica in replicas.items()}
        await asyncio.gather(*(self.balancer.add(replica.port) for replica in replicas.values()))

    async def kill(self, name: str) -> None:
        replica = self.replicas.pop(name)
        port = replica.port
        await asyncio.to_thread(replica.kill)
        await self.balancer.remove(port)

    async def stop_gently(self, name: str) -> None:
        """As a platform does: first no new requests, then SIGTERM; counts what failed meanwhile."""
        replica = self.replicas.pop(name)
        port, before = replica.port, self.failures()
        await self.balancer.deregister(port)
        if code := await asyncio.to_thread(replica.stop):
            self.verdict.complaints.append(f"{name} was stopped gently and ended with code {code}")
        await self.balancer.remove(port)
        self.verdict.failed_while_stopping += self.failures() - before

    def failures(self) -> int:
        return sum(self.balancer.broken.values()) + self.balancer.empty

    async def query(self, statement: str) -> list[tuple[Any, ...]]:
        async with await psycopg.AsyncConnection.connect(self._database_url) as connection:
            return await (await connection.execute(statement)).fetchall()

    async def execute(self, statements: str) -> None:
        async with await psycopg.AsyncConnection.connect(self._database_url) as connection:
            await connection.execute(statements)

    async def holder(self, other_than: str = "") -> str:
        """The replica that has the lease; waits until one other than the named has it."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                held = "SELECT holder FROM leases WHERE name = 'reconciler' AND expires_at > now()"
                rows = await self.query(held)
                name = self._named(rows[0][0]) if rows else None
                if name in self.replicas and name != other_than:
                    return name
                await asyncio.sleep(0.05)

    def _named(self, holder: str) -> str:
        """The replica whose process id stands in the name of a holder of the lease."""
        found = [
            self._pids[int(part)] for part in holder.split("-") if part.isdigit() and int(part) in self._pids
        ]
        assert found, holder
        return found[0]

    async def judge(self, load: Load) -> None:
        """Counts what arrived, and reads what the database and Dataflow's calls say."""
        verdict = self.verdict
        async with asyncio.timeout(DEADLINE_SECONDS):
            while (await self.query("SELECT count(*) FROM outbox"))[0][0]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        arrived: dict[str, list[str]] = {}
        for message in await asyncio.to_thread(lambda: list(pull_all(self._pubsub))):
            arrived.setdefault(json.loads(message.data)["userid"], []).append(message.attributes["event_id"])
        verdict.statuses = load.statuses
        verdict.answered = len(load.promised)
        kept = [user for user, event_id in load.promised.items() if set(arrived.get(user, ())) == {event_id}]
        verdict.arrived = len(kept)
        verdict.copies = sum(len(ids) - 1 for ids in arrived.values())
        if missing := sorted(load.promised.keys() - set(kept)):
            verdict.complaints.append(f"{len(missing)} are lost or under another id: {missing[:10]}")
        await self._judge_terms()
        await self._judge_drains()
        applied = await self.query("SELECT revision, count(*) FROM schema_history GROUP BY revision")
        if schema.revisions().newest not in dict(applied) or {count for _, count in applied} != {1}:
            verdict.complaints.append(f"migrations were noted as {applied}")
        self._judge_logs()

    async def _judge_terms(self) -> None:
        """Each look at all jobs lies in a term of the lease, and its replica is the holder of that term."""
        rows = await self.query(
            "SELECT token, min(holder), count(DISTINCT holder), min(at) FROM lease_log"
            " WHERE name = 'reconciler' GROUP BY token ORDER BY token"
        )
        if any(holders != 1 for _, _, holders, _ in rows):
            self.verdict.complaints.append("a term of the lease had two holders")
        starts = [(at, self._named(holder)) for _, holder, _, at in rows]
        self.verdict.terms = len(starts)
        for call in self.calls:
            if not call.is_of_a_tick:
                continue
            self.verdict.looks += 1
            term = [name for at, name in starts if at <= call.at]
            if not term or term[-1] != call.replica:
                self.verdict.complaints.append(f"{call.replica} looked in the term of {term[-1:]}")

    async def _judge_drains(self) -> None:
        for job in self.drained:
            asked = await self.query(
                f"SELECT count(*) FROM job_events WHERE job_id = '{job}' AND kind = 'drain_requested'"
            )
            ended = await self.query(
                "SELECT state, (SELECT count(*) FROM attempts WHERE job_id = jobs.id)"
                f" FROM jobs WHERE id = '{job}'"
            )
            if asked != [(1,)] or ended != [("DRAINED", 1)]:
                self.verdict.complaints.append(f"the drain of {job}: asked {asked}, ended {ended}")
        if len(self._dataflow._fleet.jobs) != len(self.drained):
            self.verdict.complaints.append("Dataflow has another number of jobs than were launched")

    def _judge_logs(self) -> None:
        """Only one process says of the schema that it changed it."""
        logs = "".join(path.read_text() for path in self._directory.glob("replica-*/*.log"))
        if (changes := logs.count("the schema was changed")) != self.schema_changes:
            self.verdict.complaints.append(f"{changes} replicas changed the schema")

    async def close(self) -> None:
        for replica in self.replicas.values():
            await asyncio.to_thread(replica.kill)
        await self._taps.aclose()


@asynccontextmanager
async def turmoil(directory: Path, database_url: str, release: Path | None = None) -> AsyncIterator[Turmoil]:
    """Two replicas that were started at once on an empty database, behind a balancer."""
    templates = {TEMPLATE: Template("tests.waiting_job")}
    pubsub = local_pubsub(directory)
    await asyncio.to_thread(pubsub.start)
    try:
        await asyncio.to_thread(make_topic, pubsub.address)
        async with DataflowServer(directory / "dataflow", templates=templates) as dataflow:
            world = Turmoil(directory, database_url, pubsub.address, dataflow)
            async with world.balancer:
                try:
                    await world.start(2, release)
                    await world.execute(LEASE_LOG)
                    yield world
                finally:
                    await world.close()
    finally:
        await asyncio.to_thread(pubsub.kill)
