"""Who may call what: every route of the application against every kind of credential."""

from __future__ import annotations

import hmac
import re

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from service.app import create_app
from service.auth import keys, scopes
from service.config import Settings
from service.db import Database
from service.models import utc_now
from tests.credential_kinds import credentials, tokens
from tests.doors import Issuer, bearer, make_key, new_ec_key, shut
from tests.serving import ARTICLE, JSON, assert_problem, pubsub_with_topic, running, settings_for, until
from tests.test_connections import listening

JOB = "0123456789abcdefghjk"
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"}
# No error where nothing was sent, the scope where it is too small: RFC 6750, section 3.
CHALLENGES = {
    "authentication_required": 'Bearer realm="signin"',
    "invalid_credentials": 'Bearer realm="signin", error="invalid_token"',
    "insufficient_scope": 'Bearer realm="signin", error="insufficient_scope", scope="{scope}"',
}


def routes(holder):
    """Each (method, path) that the application serves, whatever it is made of."""
    found = set()
    for route in holder.routes:
        inner = getattr(route, "original_router", None) or (route if hasattr(route, "routes") else None)
        if inner is not None:
            found |= routes(inner)
        else:
            found |= {(method, route.path) for method in route.methods if method != "HEAD"}
    return found


@pytest.fixture(scope="module")
def issuer():
    with Issuer().serving() as issuer:
        yield issuer


def test_every_route_of_the_application_has_a_rule():
    app = create_app(Settings(_env_file=None))
    found = routes(app)
    assert {("POST", "/events/signin"), ("GET", "/jobs/{job_id}"), ("GET", "/docs")} < found
    assert {
        (method.upper(), path) for path, each in app.openapi()["paths"].items() for method in each
    } < found
    assert found - scopes.RULES.keys() == set(), "say in service/auth/scopes.py who may call them"


async def wrongly_answered(client, rules, kinds):
    """What was not answered as the table says: (route, kind of credential) to the answer."""
    found = {}
    for method, template in sorted(rules):
        path = re.sub(r"{\w+}", JOB, template)
        for kind, (headers, expected) in kinds.items():
            response = await client.request(method, path, headers=headers)
            if expected is None or rules[method, template] == scopes.OPEN:
                right = (
                    response.status_code not in (401, 403, 429) and "www-authenticate" not in response.headers
                )
            else:
                problem = assert_problem(response, *expected) if response.status_code == expected[0] else {}
                challenge = CHALLENGES[expected[1]].format(scope=rules[method, template])
                right = problem != {} and response.headers["www-authenticate"] == challenge
                right &= "signin_" not in response.text
            if not right:
                found[method, template, kind] = (response.status_code, response.text[:200])
    return found


async def test_every_route_answers_every_key_as_the_table_says(tmp_path, database_url):
    async with shut(tmp_path, database_url, control_requests_per_second=0) as (app, client):
        served = routes(app)
        for wanted in sorted(set(scopes.RULES.values())):
            rules = {
                rule: scope for rule, scope in scopes.RULES.items() if scope == wanted and rule in served
            }
            kinds = await credentials(app.state.database, wanted)
            assert await wrongly_answered(client, rules, kinds) == {}


async def test_every_route_answers_every_token_as_the_table_says(tmp_path, database_url, issuer):
    values = issuer.settings(control_requests_per_second=0, oidc_keys_seconds=0.1, key_refresh_seconds=0.02)
    issuer.private["old"] = turned_over = rsa.generate_private_key(65537, 2048)
    async with shut(tmp_path, database_url, **values) as (app, client):
        assert (await client.get("/jobs", headers=bearer(issuer.token("old")))).status_code == 200
        del issuer.private["old"]
        issuer.private["new"] = new_ec_key()
        before = issuer.fetches
        await until(lambda: issuer.fetches > before + 1)  # the first of them may have begun before
        served = routes(app)
        rules = {rule: scope for rule, scope in scopes.RULES.items() if rule in served}
        kinds = {
            kind: (bearer(token), expected) for kind, (token, expected) in tokens(issuer, turned_over).items()
        }
        assert await wrongly_answered(client, rules, kinds) == {}


async def test_a_route_that_was_forgotten_in_the_table_is_for_admins_alone(tmp_path, database_url):
    app = create_app(settings_for(tmp_path, host="0.0.0.0", database_url=database_url))
    app.add_api_route("/forgotten/{name}", lambda name: name)
    async with running(app) as client:
        ordinary = await make_key(app.state.database, *(scopes.ALL - {scopes.ADMIN}))
        admin = await make_key(app.state.database, scopes.ADMIN, name="admin")
        assert_problem(await client.get("/forgotten/x"), 401, "authentication_required")
        refused = await client.get("/forgotten/x", headers=bearer(ordinary.text))
        assert assert_problem(refused, 403, "insufficient_scope")["scope"] == "admin"
        assert (await client.get("/forgotten/x", headers=bearer(admin.text))).text == '"x"'


async def test_an_unknown_key_and_a_wrong_secret_cost_the_same_work_and_get_the_same_answer(
    tmp_path, database_url, monkeypatch
):
    compared = []
    compare_digest = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda *pair: compared.append(1) or compare_digest(*pair))
    async with shut(tmp_path, database_url) as (app, client):
        key = await make_key(app.state.database, scopes.ADMIN)
        unknown = keys.generate("unknown", frozenset({scopes.ADMIN}), utc_now(), None).text
        answers = {}
        for name, text in {"unknown": unknown, "wrong": key.text[:-43] + unknown[-43:]}.items():
            before = len(compared)
            answer = await client.get("/jobs", headers=bearer(text) | {"X-Request-ID": "same"})
            assert len(compared) == before + 1, name
            answers[name] = (answer.status_code, answer.content, answer.headers)
        assert answers["unknown"] == answers["wrong"]


async def test_every_address_tells_its_methods_and_takes_no_other(tmp_path, database_url):
    async with shut(tmp_path, database_url, control_requests_per_second=0) as (app, client):
        admin = bearer((await make_key(app.state.database, scopes.ADMIN)).text)
        by_path = {}
        for method, path in routes(app):
            by_path.setdefault(path, set()).add(method)
        for template, served in by_path.items():
            path = re.sub(r"{\w+}", JOB, template)
            methods = served | ({"HEAD"} if "GET" in served else set())
            for method in METHODS - methods:
                answer = await client.request(method, path, headers=admin)
                assert (answer.status_code, method, path) == (405, method, path)
                assert set(answer.headers["allow"].split(", ")) == methods, path
                assert (await client.request(method, path)).status_code in (401, 405), (method, path)


async def test_a_head_is_answered_as_its_get_and_wants_the_same_key(tmp_path, database_url):
    async with shut(tmp_path, database_url) as (app, client):
        key = await make_key(app.state.database, scopes.JOBS_READ)
        assert (await client.head("/jobs")).status_code == 401
        seen, told = [await ask("/jobs", headers=bearer(key.text)) for ask in (client.head, client.get)]
        assert (seen.status_code, seen.headers["content-length"]) == (200, told.headers["content-length"])


async def test_on_a_real_connection_the_short_way_of_sign_ins_has_the_same_door(tmp_path, database_url):
    values = {"database_url": database_url, "require_authentication": True}
    async with pubsub_with_topic(tmp_path, **values) as (_, settings, _reader):
        database = Database(settings)
        right = await make_key(database, scopes.EVENTS_WRITE)
        wrong = await make_key(database, scopes.JOBS_READ, name="wrong")
        await database.close()
        unknown = keys.generate("unknown", frozenset({scopes.ADMIN}), utc_now(), None)
        async with (
            listening(settings) as port,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
        ):
            sent = {}
            for name, headers in {
                "none": {},
                "unknown": bearer(unknown.text),
                "wrong": {"X-API-Key": wrong.text},
                "right": bearer(right.text),
                "other header": {"X-API-Key": right.text},
            }.items():
                sent[name] = await client.post("/events/signin", content=ARTICLE, headers=JSON | headers)
            assert_problem(sent["none"], 401, "authentication_required")
            assert_problem(sent["unknown"], 401, "invalid_credentials")
            assert_problem(sent["wrong"], 403, "insufficient_scope")
            assert [sent[name].status_code for name in ("right", "other header")] == [202, 202]
            assert sent["right"].headers["ratelimit-policy"] == '"events";q=20000;w=10'
            headed = await client.head("/jobs", headers=bearer(wrong.text))
            assert (headed.status_code, headed.content) == (200, b"")
            assert int(headed.headers["content-length"]) > 0


async def test_what_is_not_there_may_be_told_to_anybody(tmp_path, database_url):
    async with shut(tmp_path, database_url) as (_, client):
        assert_problem(await client.get("/nowhere"), 404, "not_found")
        assert_problem(await client.delete("/jobs"), 405, "method_not_allowed")


async def test_the_write_scope_of_jobs_includes_reading_them(tmp_path, database_url):
    async with shut(tmp_path, database_url) as (app, client):
        key = await make_key(app.state.database, scopes.JOBS_WRITE)
        assert (await client.get("/jobs", headers=bearer(key.text))).status_code == 200


async def test_the_interface_says_what_each_route_wants_and_how_it_refuses():
    document = create_app(Settings(_env_file=None)).openapi()
    drain = document["paths"]["/jobs/{job_id}/drain"]["post"]
    assert "`jobs:write`" in drain["description"]
    assert {"401", "403", "421", "429", "503"} <= drain["responses"].keys()
    assert drain["security"] == [{"bearer": []}, {"key": []}]
    assert document["paths"]["/healthz"]["get"]["security"] == []
    assert {"bearer", "key"} == document["components"]["securitySchemes"].keys()
