"""Keys and tokens that are not known yet: what they cost, and that those of one caller leave others alone."""

from __future__ import annotations

import asyncio
import socket
import time

import httpx

from service.auth import keys, questions
from service.auth.questions import LookUps
from service.db import Database
from service.models import utc_now
from tests.doors import Issuer, bearer, make_key, shut
from tests.serving import NOBODY, assert_problem, settings_for


async def test_wrong_keys_cost_a_bounded_number_of_looks_into_the_database(
    tmp_path, database_url, monkeypatch
):
    monkeypatch.setattr(questions, "LOOK_UPS_PER_SECOND", 3.0)
    async with shut(tmp_path, database_url) as (app, client):
        key = await make_key(app.state.database, "jobs:read")
        assert (await client.get("/jobs", headers=bearer(key.text))).status_code == 200
        started = time.monotonic()
        wrong = [keys.generate("x", frozenset(), utc_now(), None).text for _ in range(20)]
        answers = await asyncio.gather(*(client.get("/jobs", headers=bearer(text)) for text in wrong))
        looks = sum(answer.status_code == 401 for answer in answers)
        assert {answer.status_code for answer in answers} == {401, 429}
        assert looks <= 3 + 3 * (time.monotonic() - started)
        assert (await client.get("/jobs", headers=bearer(key.text))).status_code == 200
        again = await client.get("/jobs", headers=bearer(wrong[0]))
        assert_problem(again, 401, "invalid_credentials")  # remembered: no look, so no limit


def test_unknown_keys_of_one_address_leave_looks_for_those_of_others():
    looks = LookUps(0.0)
    assert sum(looks.take("hostile", 0.0) for _ in range(1000)) == questions.LOOK_UPS_PER_ADDRESS
    assert looks.take("good", 0.0)
    taken = sum(looks.take(f"hostile {number}", 0.0) for number in range(1000))
    assert (
        taken == questions.LOOK_UPS_PER_SECOND - questions.LOOK_UPS_PER_ADDRESS - 1
    )  # the database's own bound
    assert looks.take("good", 0.1)


def test_the_addresses_whose_looks_are_counted_are_bounded_and_who_asks_is_not_forgotten(monkeypatch):
    monkeypatch.setattr(questions, "MOST_ADDRESSES", 3)
    monkeypatch.setattr(questions, "LOOK_UPS_PER_ADDRESS", 10.0)
    looks = LookUps(0.0)
    taken = 0
    for number in range(50):
        taken += looks.take("hostile", 0.0)
        looks.take(f"other {number}", 0.0)
    assert taken == 10


async def test_who_presents_invented_keys_does_not_keep_good_ones_of_another_address_out(
    tmp_path, database_url, monkeypatch
):
    monkeypatch.setattr(questions, "LOOK_UPS_PER_ADDRESS", 3.0)
    async with shut(tmp_path, database_url) as (app, client):
        key = await make_key(app.state.database, "jobs:read")
        invented = [keys.generate("x", frozenset(), utc_now(), None).text for _ in range(20)]
        answers = await asyncio.gather(*(client.get("/jobs", headers=bearer(text)) for text in invented))
        assert {answer.status_code for answer in answers} == {401, 429}
        elsewhere = httpx.ASGITransport(app=app, client=("203.0.113.7", 1234))
        async with httpx.AsyncClient(transport=elsewhere, base_url="http://localhost") as other:
            assert (await other.get("/jobs", headers=bearer(key.text))).status_code == 200


async def test_keys_that_nobody_can_look_up_leave_tokens_alone(tmp_path, database_url):
    issuer = Issuer()
    with issuer.serving():
        async with shut(tmp_path, database_url, **issuer.settings()) as (app, client):
            away = Database(settings_for(tmp_path, database_url=f"postgresql://nobody@{NOBODY}/nothing"))
            there, app.state.guard.database = app.state.guard.database, away
            try:
                unknown = keys.generate("x", frozenset(), utc_now(), None).text
                answer = await client.get("/jobs", headers=bearer(unknown))
                assert_problem(answer, 503, "authentication_unavailable")
                assert (await client.get("/jobs", headers=bearer(issuer.token()))).status_code == 200
            finally:
                app.state.guard.database = there
                await away.close()


async def test_tokens_of_an_issuer_that_is_silent_leave_keys_alone(tmp_path, database_url):
    issuer = Issuer()
    with issuer.serving(), socket.create_server(("127.0.0.1", 0)) as silent:  # which never answers
        values = issuer.settings(oidc_jwks_url=f"http://127.0.0.1:{silent.getsockname()[1]}/keys")
        async with shut(tmp_path, database_url, **values) as (app, client):
            key = await make_key(app.state.database, "jobs:read")
            tokens = [issuer.token(sub=str(number)) for number in range(2 * questions.MOST_QUESTIONS)]
            asked = [asyncio.create_task(client.get("/jobs", headers=bearer(token))) for token in tokens]
            connection, _ = await asyncio.to_thread(silent.accept)
            answer = await asyncio.wait_for(client.get("/jobs", headers=bearer(key.text)), 3)
            assert answer.status_code == 200
            connection.close()
            for each in await asyncio.gather(*asked):
                assert_problem(each, 503, "authentication_unavailable")
