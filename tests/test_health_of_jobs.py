"""What readiness tells of the replica that looks at the jobs."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

from service.app import create_app
from service.auth import Guard
from service.breaker import Breaker
from service.clients import Clients
from service.dataflow import Dataflow
from service.health import Readiness
from service.lease import Lease
from service.models import utc_now
from service.outbox import Outbox
from service.reconciler import LEASE, Reconciler
from tests.serving import running, settings_for, until


async def test_who_looks_at_the_jobs_and_when_it_did_is_told_by_every_replica(tmp_path, database_url):
    settings = settings_for(tmp_path, database_url=database_url)
    apps = [create_app(settings) for _ in range(2)]
    async with running(apps[0]) as first:
        await until(lambda: apps[0].state.reconciler.last_tick)
        async with running(apps[1]) as second:
            for client in (first, second):
                problem = await client.get("/readyz")
                assert problem.status_code == 200, problem.text
            own, other = [(await client.get("/readyz")).json()["lease"] for client in (first, second)]
    assert own["holder"] == other["holder"]
    assert own["holder"].startswith(f"{socket.gethostname()[-40:]}-{os.getpid()}-")
    assert (own["is_this_process"], other["is_this_process"]) == (True, False)
    assert own["is_held"]
    assert own["last_tick"]["outcome"] == "complete"
    assert other["last_tick"] is None
    assert 0 <= own["age_seconds"] < settings.reconcile_lease_seconds


async def test_jobs_at_which_no_replica_looks_are_told(tmp_path, database, database_url):
    settings = settings_for(tmp_path, database_url=database_url)
    clients = Clients(settings)
    reconciler = Reconciler(database, Dataflow(clients, settings), settings)  # nobody runs it
    breaker = Breaker(failures=1, open_seconds=1, probe_seconds=1)
    outbox, guard = Outbox(database, settings), Guard(settings)
    readiness = Readiness(settings, clients, database, outbox, breaker, reconciler, guard)
    try:
        assert (await readiness.dependencies())["reconciler"].ok  # it has not had the time
        assert readiness.lease is None
        earlier = utc_now() - timedelta(hours=1)
        gone = Lease(database, LEASE, settings.reconcile_lease_seconds, lambda: earlier)
        assert await gone.take()
        readiness._asked_at = float("-inf")
        found = (await readiness.dependencies())["reconciler"]
        assert found.cause == "no replica has looked at the jobs for 3585 s"
        assert readiness.lease.holder == gone.holder
        assert not readiness.lease.is_held
        assert readiness.lease.renewed_at == earlier
    finally:
        await clients.close()
