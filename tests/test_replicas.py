"""Several replicas on one PostgreSQL behind a balancer: what no single process can show."""

from __future__ import annotations

import pytest

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
