"""An issuer of tokens that hangs, fails or withdraws a key: whose key is known comes in all the same."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest

from service.auth import issuer_keys
from service.auth.questions import MOST_WAITING
from service.auth.tokens import Tokens
from service.config import Settings
from service.errors import AuthenticationUnavailableError, InvalidCredentialsError
from tests.doors import Issuer, bearer, new_ec_key, shut
from tests.serving import assert_problem, until

ALWAYS_OLD = 1e-6  # of SIGNIN_OIDC_KEYS_SECONDS: every token finds keys that should be fetched anew


@pytest.fixture
def issuer():
    with Issuer().serving() as issuer:
        yield issuer


@pytest.fixture(autouse=True)
def _hangs_for_long(monkeypatch):
    monkeypatch.setattr(issuer_keys, "FETCH_SECONDS", 30.0)


@pytest.fixture
async def tokens(issuer):
    tokens = Tokens(Settings(_env_file=None, **issuer.settings(oidc_keys_seconds=ALWAYS_OLD)))
    yield tokens
    await tokens.issuer.close()


@pytest.fixture
def clock(monkeypatch):
    """The time of the keys, in seconds; the event loop keeps its own."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(issuer_keys, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def invented(issuer, number):
    """A token under a kid that nobody has."""
    return issuer.token(f"invented-{number}", key=new_ec_key())


async def test_a_token_whose_key_is_known_does_not_wait_for_an_issuer_that_hangs(issuer, tokens):
    await tokens.verify(issuer.token().encode())
    issuer.may_answer.clear()
    before = issuer.requests
    for number in range(3):
        caller = await asyncio.wait_for(tokens.verify(issuer.token(iat=number).encode()), 2)
        assert caller.name == "token:alice"
    await until(lambda: issuer.requests > before)
    await asyncio.wait_for(tokens.verify(issuer.token().encode()), 2)
    assert issuer.requests == before + 1  # one fetch for all of them


async def test_invented_keys_take_no_turn_from_a_token_whose_key_is_known(issuer, tmp_path, database_url):
    values = issuer.settings(oidc_keys_seconds=ALWAYS_OLD)
    async with shut(tmp_path, database_url, **values) as (_, client):

        async def asked(token):
            return await client.get("/jobs", headers=bearer(token))

        assert (await asked(issuer.token())).status_code == 200
        issuer.may_answer.clear()
        too_many = 5
        asking = [asyncio.create_task(asked(invented(issuer, n))) for n in range(MOST_WAITING + too_many)]
        await until(lambda: sum(each.done() for each in asking) == too_many)
        for number in range(3):
            answer = await asyncio.wait_for(asked(issuer.token(iat=number)), 2)
            assert answer.status_code == 200, answer.text
        issuer.may_answer.set()
        answers = await asyncio.gather(*asking)
        refused = [each for each in answers if each.status_code == 503]
        assert len(refused) == too_many
        assert_problem(refused[0], 503, "authentication_unavailable")
        assert {each.status_code for each in answers} == {401, 503}


@pytest.mark.parametrize("answer", [200, 503])
async def test_invented_keys_make_us_ask_the_issuer_at_most_every_ten_seconds(issuer, clock, answer):
    tokens = Tokens(Settings(_env_file=None, **issuer.settings()))
    await tokens.verify(issuer.token().encode())
    issuer.answer = answer
    before = issuer.requests
    for second in range(1, 61):
        clock.now = float(second)
        for number in range(3):
            with pytest.raises(InvalidCredentialsError, match="no key of that kid"):
                await tokens.verify(invented(issuer, f"{second}-{number}").encode())
    # A fetch is two requests, and one where the discovery document cannot be had.
    assert issuer.requests - before == 6 * (2 if answer == 200 else 1)
    await tokens.issuer.close()


async def test_a_new_key_is_found_while_the_known_ones_are_fresh(issuer, clock):
    tokens = Tokens(Settings(_env_file=None, **issuer.settings()))
    await tokens.verify(issuer.token().encode())
    issuer.private["second"] = new_ec_key()
    clock.now = 11.0
    assert (await tokens.verify(issuer.token("second").encode())).name == "token:alice"
    await tokens.issuer.close()


async def test_the_last_keys_are_good_for_an_hour_and_no_longer_while_the_issuer_is_silent(issuer, clock):
    tokens = Tokens(Settings(_env_file=None, **issuer.settings()))
    await tokens.verify(issuer.token().encode())
    issuer.answer = 503
    clock.now = 3599.0
    await tokens.verify(issuer.token().encode())
    clock.now = 3601.0
    with pytest.raises(AuthenticationUnavailableError):
        await tokens.verify(issuer.token().encode())
    await tokens.issuer.close()


async def test_a_key_that_is_withdrawn_is_forgotten_though_no_token_comes(issuer, tmp_path, database_url):
    values = issuer.settings(oidc_keys_seconds=0.05, key_refresh_seconds=0.02)
    async with shut(tmp_path, database_url, **values) as (_, client):
        old = issuer.private["first"]
        assert (await client.get("/jobs", headers=bearer(issuer.token()))).status_code == 200
        issuer.private = {"second": new_ec_key()}
        before = issuer.fetches
        await until(lambda: issuer.fetches > before + 1)  # the first of them may have begun before
        answer = await client.get("/jobs", headers=bearer(issuer.token("first", key=old, iat=1)))
        assert_problem(answer, 401, "invalid_credentials")


async def test_the_log_says_once_that_the_issuer_is_away_and_once_that_it_is_back(issuer, tokens, caplog):
    caplog.set_level(logging.INFO, logger="service.auth")
    for answer in (503, 503, 503, 200, 200):
        issuer.answer = answer
        with pytest.raises((AuthenticationUnavailableError, InvalidCredentialsError)):
            await tokens.verify(invented(issuer, answer).encode())
    told = [(each.levelname, each.getMessage()) for each in caplog.records]
    assert told == [
        (
            "WARNING",
            f"the keys of {issuer.url} cannot be fetched: "
            f"{issuer.url}/.well-known/openid-configuration answered 503",
        ),
        ("INFO", f"the keys of {issuer.url} can be fetched again"),
    ]


async def test_a_fetch_that_hangs_ends_with_the_service(issuer, tmp_path, database_url):
    issuer.may_answer.clear()
    async with asyncio.timeout(15):  # a fetch may take thirty
        async with shut(tmp_path, database_url, **issuer.settings()):
            await until(lambda: issuer.requests)
    assert "keys of the issuer" not in {each.get_name() for each in asyncio.all_tasks()}
