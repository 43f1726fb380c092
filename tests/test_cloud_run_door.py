"""Behind Cloud Run: its door reads one header and takes a signature away, ours reads the other."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from typer.testing import CliRunner

from service.auth import scopes
from service.cli import app
from service.db import Database
from tests.cloud_run import CloudRun, for_cloud_run, without_signature
from tests.doors import Issuer, bearer, make_key, shut
from tests.serving import assert_problem, listening, settings_for


@pytest.fixture(scope="module")
def issuer():
    with Issuer().serving() as issuer:
        yield issuer


@pytest.fixture
async def world(tmp_path, database_url, issuer):
    """Cloud Run with the service behind it, a token that both take, one without scopes, and a key."""
    settings = settings_for(tmp_path, database_url=database_url, host="0.0.0.0", **issuer.settings())
    async with listening(settings) as port:
        database = Database(settings)
        try:
            key = (await make_key(database, scopes.JOBS_READ)).text
        finally:
            await database.close()
        token, little = issuer.token(), issuer.token(sub="mallory")
        with CloudRun(port, token, little) as front:
            yield front, token, little, key


async def ask(front, headers):
    async with httpx.AsyncClient(base_url=front.url, timeout=20) as client:
        return await client.get("/jobs", headers=headers)


async def test_a_token_in_authorization_alone_passes_cloud_run_and_is_told_what_to_do(world):
    front, token, _, _ = world
    answer = await ask(front, bearer(token))
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (401, "invalid_credentials")
    assert "Cloud Run" in problem["detail"]
    assert "X-Serverless-Authorization: Bearer" in problem["detail"]


async def test_both_headers_together_pass_both_doors(world):
    front, token, little, key = world
    for headers in (
        for_cloud_run(token) | bearer(token),
        for_cloud_run(little) | bearer(token),
        for_cloud_run(little) | bearer(key),
        bearer(token) | {"X-API-Key": key},
    ):
        assert (await ask(front, headers)).status_code == 200, headers.keys()


async def test_what_is_for_cloud_run_lets_nobody_in_here(world):
    front, token, little, _ = world
    assert_problem(await ask(front, for_cloud_run(token)), 401, "authentication_required")
    assert_problem(await ask(front, for_cloud_run(token) | bearer(little)), 403, "insufficient_scope")
    assert (await ask(front, {})).status_code == 403  # Cloud Run's own, which is no problem document


@pytest.mark.parametrize("takes_tokens", [True, False])
async def test_a_token_that_was_cut_is_refused_without_a_question(
    tmp_path, database_url, issuer, takes_tokens
):
    values = issuer.settings() if takes_tokens else {}
    cut, fetches = without_signature(issuer.token()), issuer.fetches
    async with shut(tmp_path, database_url, **values) as (_, client):
        for headers in (bearer(cut), {"X-API-Key": cut}, bearer(cut)):
            answer = await client.get("/jobs", headers=headers)
            problem = assert_problem(answer, 401, "invalid_credentials")
            assert "removed its signature" in problem["detail"]
            assert answer.headers["www-authenticate"] == 'Bearer realm="signin", error="invalid_token"'
        assert issuer.fetches == fetches
        other = await client.get("/jobs", headers=bearer(f"{cut}_"))
        assert "Cloud Run" not in other.json()["detail"]


async def test_the_command_line_sends_cloud_run_its_token_and_us_the_key(world, tmp_path):
    front, _, little, key = world
    (tmp_path / "token").write_text(f"{little}\n")

    async def run(**variables):
        names = ("API_KEY", "API_KEY_FILE", "SERVERLESS_TOKEN", "SERVERLESS_TOKEN_FILE")
        environment = {f"SIGNIN_{name}": variables.get(name) for name in names}
        arguments = ["jobs", "list", "--json", "--url", front.url]
        return await asyncio.to_thread(CliRunner().invoke, app, arguments, env=environment)

    for found in (
        await run(API_KEY=key, SERVERLESS_TOKEN=little),
        await run(API_KEY=key, SERVERLESS_TOKEN_FILE=str(tmp_path / "token")),
    ):
        assert (found.exit_code, '"jobs"' in found.stdout) == (0, True), found.output
    alone = await run(API_KEY=key)
    assert (alone.exit_code, "SIGNIN_SERVERLESS_TOKEN" in alone.stderr) == (1, True)
    in_its_place = await run(API_KEY=little)
    assert "removed its signature" in in_its_place.stderr
    assert "SIGNIN_SERVERLESS_TOKEN" in in_its_place.stderr
    for found in (alone, in_its_place):
        assert key not in found.output
        assert little not in found.output
