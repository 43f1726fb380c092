"""The keys of a token issuer: turned over, away, and not to be trusted."""

from __future__ import annotations

import asyncio

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from service.auth import issuer_keys
from service.auth.tokens import Tokens, granted_by, rules_of
from service.config import Settings
from service.errors import AuthenticationUnavailableError, ConfigError, InvalidCredentialsError
from tests.doors import Issuer, bearer, new_ec_key, shut
from tests.serving import assert_problem


@pytest.fixture
def issuer():
    with Issuer().serving() as issuer:
        yield issuer


def tokens_of(issuer, **values):
    return Tokens(Settings(_env_file=None, **issuer.settings(**values)))


async def verified(tokens, token):
    return (await tokens.verify(token.encode())).name


async def test_a_key_that_the_issuer_turned_over_is_good_no_more_and_the_new_one_at_once(issuer):
    tokens = tokens_of(issuer, oidc_keys_seconds=0.1)
    old = issuer.token()
    assert await verified(tokens, old) == "token:alice"
    issuer.private = {"second": new_ec_key()}
    await asyncio.sleep(0.11)  # the keys that are kept are too old now, which has no event
    assert await verified(tokens, issuer.token("second")) == "token:alice"
    with pytest.raises(InvalidCredentialsError, match="no key of that kid"):
        await tokens.verify(old.encode())


async def test_tokens_with_unknown_keys_do_not_make_us_hammer_the_issuer(issuer):
    tokens = tokens_of(issuer)
    stranger = rsa.generate_private_key(65537, 2048)
    answers = await asyncio.gather(
        *(tokens.verify(issuer.token(f"kid-{n}", key=stranger).encode()) for n in range(20)),
        return_exceptions=True,
    )
    assert {type(each) for each in answers} == {InvalidCredentialsError}
    assert issuer.fetches == 1


async def test_the_last_keys_stay_good_while_the_issuer_is_away(issuer):
    tokens = tokens_of(issuer, oidc_keys_seconds=0.05)
    await tokens.verify(issuer.token().encode())
    issuer.answer = 503
    await asyncio.sleep(0.06)  # the keys that are kept are too old now, which has no event
    assert await verified(tokens, issuer.token()) == "token:alice"


async def test_an_issuer_that_was_never_there_is_told_as_unavailable(issuer, tmp_path, database_url):
    issuer.answer = 503
    with pytest.raises(AuthenticationUnavailableError):
        await tokens_of(issuer).verify(issuer.token().encode())
    async with shut(tmp_path, database_url, **issuer.settings()) as (_, client):
        answer = await client.get("/jobs", headers=bearer(issuer.token()))
        assert_problem(answer, 503, "authentication_unavailable")


async def test_another_issuer_s_discovery_document_is_not_believed(issuer):
    other = Issuer()
    with other.serving():
        other.document = lambda path: {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"}
        with pytest.raises(AuthenticationUnavailableError):
            await tokens_of(other).verify(issuer.token(iss=other.url).encode())


async def test_weak_and_foreign_keys_of_an_issuer_are_not_used(issuer):
    issuer.private |= {"weak": rsa.generate_private_key(65537, 1024)}
    with pytest.warns(jwt.warnings.InsecureKeyLengthWarning):
        weak = issuer.token("weak")
    with pytest.raises(InvalidCredentialsError, match="no key of that kid"):
        await tokens_of(issuer).verify(weak.encode())
    document = {
        "keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "s", "alg": "HS256"}, {"kty": "EC", "kid": "x"}, 7]
    }
    issuer.document = lambda path: document
    with pytest.raises(AuthenticationUnavailableError):
        await tokens_of(issuer, oidc_jwks_url=issuer.url).verify(issuer.token().encode())


async def test_a_document_without_an_end_is_cut_off(issuer, monkeypatch):
    monkeypatch.setattr(issuer_keys, "MOST_BYTES", 50)
    with pytest.raises(AuthenticationUnavailableError):
        await tokens_of(issuer).verify(issuer.token().encode())


@pytest.mark.parametrize(
    ("claims", "allowed"),
    [
        ({"sub": "alice"}, {"jobs:read"}),
        ({"sub": "alice "}, set()),
        ({"email": "ci@example.com", "email_verified": True}, {"jobs:write", "jobs:read"}),
        ({"email": "ci@example.com", "email_verified": "true"}, set()),
        ({"email": "ci@example.com"}, set()),
        ({"groups": ["x", "ops"]}, {"events:write"}),
        ({"groups": "ops"}, {"events:write"}),
        ({"scope": "openid signin.send"}, {"events:write"}),
        ({"scope": "signin.sender"}, set()),
        ({"sub": {"alice": 1}}, set()),
    ],
)
def test_claims_allow_what_the_settings_say(claims, allowed):
    rules = rules_of(
        '{"sub=alice": ["jobs:read"], "email=ci@example.com": ["jobs:write"],'
        ' "groups=ops": ["events:write"], "scope=signin.send": ["events:write"]}'
    )
    assert granted_by(claims, rules) == allowed


def test_a_rule_for_every_token_is_a_star():
    assert granted_by({"sub": "x"}, rules_of('{"*": ["jobs:read"]}')) == {"jobs:read"}


@pytest.mark.parametrize(
    "text",
    ["[]", "nonsense", '{"sub": ["admin"]}', '{"sub=x": "admin"}', '{"sub=x": ["root"]}', '{"sub=x": []}'],
)
def test_rules_that_say_nothing_sensible_keep_the_service_from_starting(text):
    with pytest.raises(ConfigError, match="SIGNIN_OIDC_SCOPES"):
        rules_of(text)


@pytest.mark.parametrize(
    "values",
    [
        {"oidc_issuer": "https://accounts.google.com"},
        {"oidc_issuer": "http://accounts.google.com", "oidc_audience": "x"},
        {"oidc_issuer": "https://a.example", "oidc_audience": "x", "oidc_jwks_url": "http://a.example/keys"},
    ],
)
def test_an_issuer_needs_an_audience_and_https(values):
    with pytest.raises(ConfigError):
        Tokens(Settings(_env_file=None, **values))
