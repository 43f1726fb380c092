"""Who is told which machine and process looks at the jobs: `/readyz` is open to everybody."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from service.auth import keys
from service.models import utc_now
from tests.doors import bearer, make_key, shut
from tests.serving import until

QUICK = 0.05


@pytest.fixture
async def holder(tmp_path, database_url):
    """Asks a service of these settings who holds the lease; it is served to the end of the test."""
    async with AsyncExitStack() as stack:

        async def served(**values):
            app, client = await stack.enter_async_context(
                shut(tmp_path, database_url, key_refresh_seconds=QUICK, **values)
            )
            await until(lambda: app.state.reconciler.last_tick)

            async def asked(**headers):
                answer = await client.get("/readyz", headers=headers)
                assert answer.status_code == 200, answer.text
                lease = answer.json()["lease"]
                assert lease["is_this_process"]
                return lease["holder"]

            return app, asked

        yield served


async def test_a_caller_without_a_good_key_is_not_told_who_holds_the_lease(holder):
    app, asked = await holder()
    key = await make_key(app.state.database, "events:write")
    unknown = keys.generate("x", frozenset({"admin"}), utc_now(), None)
    assert await asked() is None
    assert await asked(**bearer(unknown.text)) is None
    assert await asked(**bearer(key.text)) == app.state.reconciler.lease.holder


async def test_where_the_service_is_open_everybody_is_told_but_a_page_of_another_site(holder):
    app, asked = await holder(host="127.0.0.1")
    assert await asked() == app.state.reconciler.lease.holder
    assert await asked(Host="evil.example") is None


async def test_on_loopback_too_nobody_is_told_without_a_key_once_there_is_one(holder):
    app, asked = await holder(host="127.0.0.1")
    key = await make_key(app.state.database, "jobs:read")
    await until(lambda: app.state.guard._keys_exist)
    assert await asked() is None
    assert await asked(**bearer(key.text)) == app.state.reconciler.lease.holder
