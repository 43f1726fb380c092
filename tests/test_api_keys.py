"""API keys while a service runs: how soon a revoked one is refused, what an outage does, what is kept."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from service.app import create_app
from service.auth import key_store, keys, verified
from service.auth.verified import Verified, fingerprint
from service.config import Settings
from service.db import Database
from service.errors import ConfigError, InvalidCredentialsError
from service.logs import JsonFormatter
from service.models import utc_now
from tests.doors import bearer, make_key, shut
from tests.serving import (
    ARTICLE,
    JSON,
    NOBODY,
    assert_problem,
    pubsub_with_topic,
    running,
    settings_for,
    until,
)

QUICK = 0.05


async def refused(client, headers, seconds=5.0):
    """How long it takes until the headers are refused."""
    started = time.monotonic()
    while (await client.get("/jobs", headers=headers)).status_code != 401:
        assert time.monotonic() - started < seconds
        await asyncio.sleep(0.01)
    return time.monotonic() - started


async def test_a_key_that_is_revoked_is_refused_within_the_setting_by_every_process(tmp_path, database_url):
    async with (
        shut(tmp_path, database_url, key_refresh_seconds=QUICK) as (app, client),
        shut(tmp_path, database_url, key_refresh_seconds=QUICK) as (_, other),
    ):
        key = await make_key(app.state.database, "jobs:read")
        for each in (client, other):
            assert (await each.get("/jobs", headers=bearer(key.text))).status_code == 200
        await key_store.revoke(app.state.database, key.row.id, utc_now(), "test")
        # A refresh that was under way, the pause, and the next one; the rest is a busy machine.
        assert await refused(client, bearer(key.text)) < QUICK + 5.0
        assert await refused(other, bearer(key.text)) < QUICK + 5.0


async def test_a_key_expires_on_the_second_although_it_was_good_before(tmp_path, database_url):
    async with shut(tmp_path, database_url) as (app, client):
        key = await make_key(app.state.database, "jobs:read", lifetime=3)
        assert (await client.get("/jobs", headers=bearer(key.text))).status_code == 200
        await refused(client, bearer(key.text), 10.0)


async def test_a_rotated_key_and_its_successor_are_both_good_until_the_overlap_ends(tmp_path, database_url):
    async with shut(tmp_path, database_url, key_refresh_seconds=QUICK) as (app, client):
        database = app.state.database
        old = await make_key(database, "jobs:read")
        now = utc_now()
        new = keys.generate("tester", frozenset({"jobs:read"}), now, None, replaces=old.row.id)
        await key_store.replace(database, old.row.id, new.row, now, now, "test")
        assert (await client.get("/jobs", headers=bearer(new.text))).status_code == 200
        assert_problem(await client.get("/jobs", headers=bearer(old.text)), 401, "invalid_credentials")
        with pytest.raises(key_store.KeyNotFoundError):
            await key_store.replace(
                database, old.row.id, keys.generate("x", frozenset(), now, None).row, now, now, "test"
            )


async def test_a_name_belongs_to_one_good_key(database):
    first = await make_key(database, "admin")
    with pytest.raises(key_store.NameTakenError):
        await make_key(database, "admin")
    await key_store.revoke(database, first.row.id, utc_now(), "test")
    await make_key(database, "admin")


async def test_known_keys_and_sign_ins_outlive_the_database(tmp_path, database_url):
    values = {"database_url": database_url, "host": "0.0.0.0", "key_refresh_seconds": QUICK}
    async with pubsub_with_topic(tmp_path, **values) as (_, settings, _reader):
        app = create_app(settings)
        async with running(app) as client:
            key = await make_key(app.state.database, "events:write")
            other = await make_key(app.state.database, "events:write", name="other")
            headers = JSON | bearer(key.text)
            assert (await client.post("/events/signin", content=ARTICLE, headers=headers)).status_code == 202
            away = Database(settings_for(tmp_path, database_url=f"postgresql://nobody@{NOBODY}/nothing"))
            there, app.state.guard.database = app.state.guard.database, away
            try:
                answer = await client.post("/events/signin", content=ARTICLE, headers=headers)
                assert answer.status_code == 202
                unknown = await client.post(
                    "/events/signin", content=ARTICLE, headers=JSON | bearer(other.text)
                )
                assert_problem(unknown, 503, "authentication_unavailable")
            finally:
                app.state.guard.database = there
                await away.close()


async def test_whether_there_are_keys_is_asked_once_a_look(tmp_path, database_url, monkeypatch):
    asked = []
    exist = key_store.exist

    async def counted(database):
        asked.append(database)
        return await exist(database)

    monkeypatch.setattr(key_store, "exist", counted)
    async with shut(tmp_path, database_url, host="127.0.0.1", key_refresh_seconds=60.0) as (app, client):
        await until(lambda: app.state.guard.knows_callers)
        assert len(asked) == 1
        assert (await client.get("/jobs")).status_code == 200
        assert len(asked) == 1


async def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(verified, "MOST", 8)
    remembered = Verified(60.0)
    for number in range(20):
        row = keys.generate(f"n{number}", frozenset({"admin"}), utc_now(), None).row
        remembered.add_key(fingerprint(b"%d" % number), row)
        remembered.add_refused(fingerprint(b"x%d" % number), InvalidCredentialsError("No."))
    now = time.monotonic()
    assert sum(remembered.find(fingerprint(b"%d" % number), now) is not None for number in range(20)) == 8


async def test_loopback_is_open_until_the_first_key_and_shut_for_ever_after(tmp_path, database_url):
    async with shut(tmp_path, database_url, host="127.0.0.1", key_refresh_seconds=QUICK) as (app, client):
        assert (await client.get("/jobs")).status_code == 200
        key = await make_key(app.state.database, "jobs:read")
        await refused(client, {})
        assert (await client.get("/jobs", headers=bearer(key.text))).status_code == 200
        assert (await client.get("/metrics")).status_code == 200
        await key_store.revoke(app.state.database, key.row.id, utc_now(), "test")
    async with shut(tmp_path, database_url, host="127.0.0.1") as (_, client):
        assert_problem(await client.get("/jobs"), 401, "authentication_required")


async def test_loopback_wants_a_key_at_once_where_the_settings_say_so(tmp_path, database_url):
    values = {"host": "127.0.0.1", "require_authentication": True}
    async with shut(tmp_path, database_url, **values) as (_, client):
        assert_problem(await client.get("/jobs"), 401, "authentication_required")
        assert_problem(await client.get("/metrics"), 401, "authentication_required")


async def test_nobody_comes_in_while_it_is_not_known_whether_there_are_keys(tmp_path):
    away = f"postgresql://nobody@{NOBODY}/nothing"
    async with shut(tmp_path, away, host="127.0.0.1") as (_, client):
        assert_problem(await client.get("/jobs"), 503, "authentication_unavailable")
        assert (await client.get("/healthz")).status_code == 200


async def test_everybody_comes_in_where_the_settings_say_so_and_wrong_keys_do_not(tmp_path, database_url):
    async with shut(tmp_path, database_url, allow_unauthenticated_access=True) as (app, client):
        await make_key(app.state.database, "jobs:read")
        assert (await client.get("/jobs")).status_code == 200
        unknown = keys.generate("x", frozenset(), utc_now(), None).text
        assert_problem(await client.get("/jobs", headers=bearer(unknown)), 401, "invalid_credentials")


def test_a_service_that_others_can_reach_does_not_start_without_keys(database_url, empty_database_url):
    def start(url, **values):
        settings = Settings(_env_file=None, host="0.0.0.0", database_url=url, **values)
        settings.require_closed(key_store.exist_now)

    for url in (empty_database_url, database_url):
        with pytest.raises(ConfigError, match="signin keys create"):
            start(url)
        start(url, allow_unauthenticated_access=True)
        start(url, oidc_issuer="https://accounts.google.com")

    async def add_key():
        database = Database(Settings(_env_file=None, database_url=database_url))
        await make_key(database, "admin")
        await database.close()

    asyncio.run(add_key())
    start(database_url)
    with pytest.raises(ConfigError, match="cannot be found out"):
        start(f"postgresql://nobody@{NOBODY}/nothing")


async def everything_in(database):
    """The text of every row of every table."""
    from sqlmodel import SQLModel, text

    found = []
    async with database.session() as session:
        for table in SQLModel.metadata.tables:
            found += [repr(tuple(row)) for row in await session.exec(text(f"SELECT * FROM {table}"))]
    return "\n".join(found)


async def test_the_history_has_the_key_s_name_and_no_log_and_no_table_its_secret(world, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    settings = world.settings.model_copy(
        update={"host": "0.0.0.0", "data_dir": tmp_path, "pubsub_emulator_host": NOBODY}
    )
    app = create_app(settings)
    async with running(app) as client:
        key = await make_key(app.state.database, "jobs:write", "events:write", name="night-shift")
        headers = bearer(key.text)
        job = (await client.post("/jobs", json={}, headers=headers)).json()
        assert (await client.post(f"/jobs/{job['id']}/cancel", headers=headers)).status_code in (200, 202)
        await client.post("/events/signin", content=b"{}", headers=JSON | headers)
        for bad in (key.text[:-1] + "!", key.text + "x", key.text.replace("signin", "singin")):
            await client.get("/jobs", headers=bearer(bad))
            await client.get("/jobs", headers={"X-API-Key": bad})
        history = (await client.get(f"/jobs/{job['id']}/events", headers=headers)).json()["events"]
        assert {each["kind"]: each["actor"] for each in history}["created"] == "key:night-shift"
        assert {each["actor"] for each in history if each["kind"] == "cancel_requested"} <= {
            "key:night-shift"
        }
        rows = await everything_in(app.state.database)
    secret = key.text[-43:]
    logged = "\n".join(JsonFormatter("signin-local").format(record) for record in caplog.records)
    assert key.row.id in rows
    assert secret not in rows
    assert secret not in logged
    assert logged


def test_a_key_is_recognised_by_its_own_secret_alone():
    new = keys.generate("x", frozenset({"admin"}), utc_now(), None)
    presented = keys.parse(new.text.encode())
    assert presented.id == new.row.id
    assert keys.is_secret_of(new.row, presented.secret)
    assert not keys.is_secret_of(new.row, presented.secret[:-1] + b"!")
    assert presented.secret not in new.row.digest + new.row.salt
    twin = keys.generate("x", frozenset({"admin"}), utc_now(), None)
    assert twin.row.salt != new.row.salt
    assert keys.digest(presented.secret, twin.row.salt) != new.row.digest


@pytest.mark.parametrize(
    "text", [b"", b"signin_", b"signin_0123456789ab_short", b"\xff" * 63, b"signin_" * 900]
)
def test_what_does_not_look_like_a_key_is_none(text):
    assert keys.parse(text) is None
