"""Replicas on one PostgreSQL are killed, stopped gently and started under load, and every promise is counted.

`python -m tests.soak.replica_turmoil [--rounds 10]`. In each round one replica is killed with SIGKILL, one is
started, one is stopped gently and one is started, while callers send sign-ins through a balancer and a job is
launched and drained. At the end: every event that was answered with 2xx is in the topic under its id; each
drain ended one Dataflow job and stands once in its history; within a term of the lease only its holder looked
at all jobs; one process changed the schema; and no request failed while a replica stopped gently.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from service.auth import key_store, keys
from service.config import Settings
from service.db import Database
from service.models import utc_now
from tests.postgres import postgres_server
from tests.replica_load import Load
from tests.replicas import DEADLINE_SECONDS, Turmoil, Verdict, turmoil

MOST_REQUESTS = 2000


async def make_key(database_url: str, name: str, *scopes: str) -> keys.NewKey:
    database = Database(Settings(_env_file=None, database_url=database_url))
    try:
        new = keys.generate(name, frozenset(scopes), utc_now(), None)
        await key_store.insert(database, new.row, utc_now(), "test")
        return new
    finally:
        await database.close()


async def revoke(database_url: str, key_id: str) -> None:
    database = Database(Settings(_env_file=None, database_url=database_url))
    try:
        await key_store.revoke(database, key_id, utc_now(), "test")
    finally:
        await database.close()


class Operator:
    """Somebody who launches and drains jobs through the balancer, and tries again under one key."""

    def __init__(self, port: int, key: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}, timeout=30
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, path: str, idempotency_key: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Idempotency-Key": idempotency_key}
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                answer = await self._http.post(path, json=body or {}, headers=headers)
                if answer.status_code not in (409, 429, 502, 503):
                    return answer.raise_for_status().json()
                await asyncio.sleep(0.05)

    async def until(self, job_id: str, state: str) -> None:
        found = None
        async with asyncio.timeout(DEADLINE_SECONDS):
            while found != state:
                answer = await self._http.get(f"/jobs/{job_id}")
                found = answer.json()["state"] if answer.status_code == 200 else found
                await asyncio.sleep(0.05)


async def try_doors(world: Turmoil, database_url: str) -> None:
    """A rate is each replica's own; a key that is revoked is refused by all."""
    key = await make_key(database_url, "visitor", "jobs:read")
    ports = [replica.port for replica in world.replicas.values()]
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key.text}"}, timeout=30) as http:

        async def ask(port: int) -> int:
            return (await http.get(f"http://127.0.0.1:{port}/jobs?page_size=1")).status_code

        busy, *others = ports
        for _ in range(MOST_REQUESTS):
            if await ask(busy) == 429:
                break
        else:
            world.verdict.complaints.append(f"{MOST_REQUESTS} requests were within the rate")
        if {await ask(port) for port in others} != {200}:
            world.verdict.complaints.append("a rate that was spent at one replica was refused by another")
        await revoke(database_url, key.row.id)
        revoked = time.monotonic()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while {await ask(port) for port in ports} != {401}:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        world.verdict.revoked_seconds = time.monotonic() - revoked


async def launch(world: Turmoil, operator: Operator, name: str) -> str:
    """Launches a job and returns its id when it runs."""
    body = {"name": name, "shared_subscription": True}
    job: str = (await operator.ask("/jobs", f"launch-{name}", body))["id"]
    await operator.until(job, "RUNNING")
    world.drained.append(job)
    return job


async def round_of(world: Turmoil, load: Load, operator: Operator, number: int) -> None:
    """One is killed, one started, one stopped gently, one started; a job's drain falls into the kill."""
    job = await launch(world, operator, f"job-{number}")
    await load.more(200)
    victim = await world.holder()
    asked = time.monotonic()
    _, answer = await asyncio.gather(
        world.kill(victim), operator.ask(f"/jobs/{job}/drain", f"drain-{number}")
    )
    assert answer["requested_state"] == "DRAINED"
    await world.holder(other_than=victim)
    world.verdict.takeover_seconds.append(time.monotonic() - asked)
    await operator.until(job, "DRAINED")
    await world.start()
    await load.more(200)
    leaving = await world.holder()
    asked = time.monotonic()
    await world.stop_gently(leaving)
    await world.holder(other_than=leaving)
    world.verdict.takeover_seconds.append(time.monotonic() - asked)
    await world.start()
    await load.more(200)


async def run(directory: Path, database_url: str, rounds: int, *, quiet: bool = False) -> Verdict:
    """The rounds, then the count. Raises where the replicas stop answering."""
    async with turmoil(directory, database_url) as world:
        sender = await make_key(database_url, "sender", "events:write")
        operating = await make_key(database_url, "operator", "jobs:write")
        operator = Operator(world.balancer.port, operating.text)
        try:
            async with Load(world.balancer.port, sender.text) as load:
                await try_doors(world, database_url)
                standing = await launch(world, operator, "standing")  # so that there is always one to look at
                for number in range(rounds):
                    await round_of(world, load, operator, number)
                    if not quiet:
                        print(f"round {number + 1:>3}: {dict(load.statuses)}", flush=True)
                await operator.ask(f"/jobs/{standing}/drain", "drain-standing")
                await operator.until(standing, "DRAINED")
            await world.judge(load)
        finally:
            await operator.close()
        return world.verdict


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves no server behind
    with (
        tempfile.TemporaryDirectory(prefix="signin-replica-turmoil-") as directory,
        postgres_server() as postgres,
    ):
        verdict = asyncio.run(run(Path(directory), postgres.create(migrated=False), arguments.rounds))
    print(verdict.summary())
    if verdict.complaints or verdict.failed_while_stopping:
        raise SystemExit("\n".join(["broken promises:", *verdict.complaints]))


if __name__ == "__main__":
    main()
