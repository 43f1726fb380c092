"""Several replicas on one PostgreSQL behind a balancer: what no single process can show."""

from __future__ import annotations

from datetime import timedelta

import pytest

from service.config import Settings
from service.db import Database
from service.lease import Lease
from service.models import utc_now
from tests.soak.replica_turmoil import run


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_replicas_are_killed_stopped_and_started_under_load_and_every_promise_holds(tmp_path, postgres):
    verdict = await run(tmp_path, postgres.create(migrated=False), rounds=1, quiet=True)
    assert verdict.complaints == []
    assert verdict.failed_while_stopping == 0
    assert verdict.arrived == verdict.answered > 500
    assert verdict.statuses["202"] == verdict.answered
    assert verdict.terms >= 3  # the first holder, the one after the kill, the one after the gentle stop
    assert verdict.looks > 20
    assert verdict.revoked_seconds < 5


@pytest.fixture
async def database(postgres):
    database = Database(Settings(_env_file=None, database_url=postgres.create(migrated=True)))
    yield database
    await database.close()


@pytest.mark.parametrize("wrong_by", [timedelta(hours=1), -timedelta(hours=1)])
async def test_a_replica_whose_clock_is_wrong_neither_robs_a_lease_nor_keeps_one(
    database, monkeypatch, wrong_by
):
    good, wrong = Lease(database, "work", 60), Lease(database, "work", 60)
    assert await good.take()
    monkeypatch.setattr("service.lease.utc_now", lambda: utc_now() + wrong_by)
    assert not await wrong.take()
    await good.release()
    assert await wrong.take()
    assert not await good.take()
    await wrong.release()
    assert await good.take()
