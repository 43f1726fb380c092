"""What readiness tells of the issuer of tokens, and when a service without its keys is not ready."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from service.app import create_app
from service.auth import issuer_keys, key_store
from service.models import utc_now
from tests.doors import Issuer, bearer, make_key, new_ec_key
from tests.serving import assert_problem, pubsub_with_topic, running, until


@pytest.fixture
def issuer():
    with Issuer().serving() as issuer:
        yield issuer


@pytest.fixture(autouse=True)
def _always_looks(monkeypatch):
    monkeypatch.setattr("service.health.readiness.CACHE_SECONDS", -1.0)


@asynccontextmanager
async def with_tokens(tmp_path, database_url, issuer, **values):
    """The service as it takes tokens of `issuer`, with its topic; yields its app and a client."""
    values = {"oidc_keys_seconds": 0.05, "key_refresh_seconds": 0.02, "database_url": database_url} | values
    async with pubsub_with_topic(tmp_path, **issuer.settings(**values)) as (_, settings, _reader):
        app = create_app(settings)
        async with running(app) as client:
            yield app, client


async def test_a_service_for_tokens_alone_is_not_ready_until_it_has_reached_its_issuer(
    tmp_path, database_url, issuer
):
    issuer.answer = 503
    async with with_tokens(tmp_path, database_url, issuer) as (app, client):
        problem = assert_problem(await client.get("/readyz"), 503, "not_ready")
        assert (
            "keys: no API key is good and no token can be verified, so nobody is let in" in problem["detail"]
        )
        told = problem["dependencies"]["issuer"]
        assert (told["ok"], told["last_ok_at"], told["cause"]) == (
            False,
            None,
            "its keys could not be fetched since the start (its answer cannot be used), so no token is taken",
        )
        issuer.answer = 200
        await until(lambda: app.state.guard.issuer.are_good)  # though no balancer brings a token
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["dependencies"]["issuer"]["ok"]) == (200, True)
        assert (await client.get("/jobs", headers=bearer(issuer.token()))).status_code == 200


async def test_an_api_key_that_is_good_keeps_a_service_ready_that_never_reached_its_issuer(
    tmp_path, database_url, issuer
):
    issuer.answer = 503
    async with with_tokens(tmp_path, database_url, issuer) as (app, client):
        database, guard = app.state.database, app.state.guard
        await make_key(database, "events:write", name="expired", lifetime=-1)
        assert_problem(await client.get("/readyz"), 503, "not_ready")
        key = await make_key(database, "events:write")
        await until(lambda: guard.knows_callers)
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert "no token is taken" in ready.json()["dependencies"]["issuer"]["cause"]
        await key_store.revoke(database, key.row.id, utc_now(), "test")
        await until(lambda: not guard.knows_callers)
        assert_problem(await client.get("/readyz"), 503, "not_ready")


async def test_an_issuer_that_is_away_degrades_a_service_that_can_still_verify_tokens(
    tmp_path, database_url, issuer, monkeypatch
):
    async with with_tokens(tmp_path, database_url, issuer) as (app, client):

        async def told():
            ready = await client.get("/readyz")
            assert ready.status_code == 200, ready.text
            return ready.json()["status"], ready.json()["dependencies"]["issuer"]

        _, well = await told()
        assert well["ok"]
        issuer.answer = 503
        await until(lambda: app.state.guard.issuer.failed)
        (status, first), (_, second) = await told(), await told()
        assert (status, first["ok"]) == ("degraded", False)
        assert first["cause"].startswith(
            "its keys cannot be fetched (its answer cannot be used); the last ones"
        )
        assert well["checked_at"] <= first["last_ok_at"] < first["since"] == second["since"]
        assert second["age_seconds"] > 0
        assert (await client.get("/jobs", headers=bearer(issuer.token()))).status_code == 200
        monkeypatch.setattr(issuer_keys, "STALE_SECONDS", -1.0)  # as after an hour
        problem = assert_problem(await client.get("/readyz"), 503, "not_ready")
        assert "so no token is taken" in problem["dependencies"]["issuer"]["cause"]


async def test_a_service_that_is_open_to_all_is_ready_without_its_issuer(tmp_path, database_url, issuer):
    issuer.answer = 503
    values = {"allow_unauthenticated_access": True}
    async with with_tokens(tmp_path, database_url, issuer, **values) as (_, client):
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")


async def test_readiness_asks_the_issuer_nothing_and_waits_for_it_no_longer_than_its_deadline(
    tmp_path, database_url, issuer, monkeypatch
):
    monkeypatch.setattr("service.health.readiness.CHECK_DEADLINE_SECONDS", 0.3)
    monkeypatch.setattr(issuer_keys, "FETCH_SECONDS", 30.0)
    issuer.may_answer.clear()
    async with with_tokens(tmp_path, database_url, issuer, oidc_keys_seconds=300.0) as (_, client):
        for _ in range(2):
            asking = asyncio.gather(*(client.get("/readyz") for _ in range(5)))
            for answer in await asyncio.wait_for(asking, 4):
                problem = assert_problem(answer, 503, "not_ready")
                assert problem["dependencies"]["issuer"]["cause"] == "no answer within 0.3 s"
        assert issuer.requests == 1  # the service's own at its start


async def test_who_asks_for_readiness_with_an_unknown_key_does_not_wait_for_the_issuer(
    tmp_path, database_url, issuer
):
    async with with_tokens(tmp_path, database_url, issuer) as (app, client):
        await until(lambda: app.state.guard.issuer.are_good and app.state.reconciler.last_tick)
        issuer.may_answer.clear()
        token = issuer.token("invented", key=new_ec_key())
        ready = await asyncio.wait_for(client.get("/readyz", headers=bearer(token)), 4)
        assert (ready.status_code, ready.json()["lease"]["holder"]) == (200, None)
