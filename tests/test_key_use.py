"""When a key was last used, which an operator wants to know of one that leaked: nothing of it is lost."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from service.auth import key_store, verified
from service.auth.verified import Verified, fingerprint
from service.db import Database
from service.errors import DatabaseUnavailableError
from service.models import utc_now
from tests.doors import bearer, make_key, shut
from tests.serving import NOBODY, settings_for


async def last_use(database, key):
    return (await key_store.find(database, [key.row.id]))[key.row.id].last_used_at


def used(remembered, key):
    remembered.add_key(fingerprint(key.text.encode()), key.row)


async def test_the_use_of_a_key_is_written_down_at_the_end_at_the_latest(tmp_path, database_url, database):
    async with shut(tmp_path, database_url) as (app, client):
        key = await make_key(app.state.database, "jobs:read")
        before = utc_now()
        for _ in range(3):
            await client.get("/jobs", headers=bearer(key.text))
        assert await last_use(database, key) is None
    assert await last_use(database, key) >= before


async def test_the_use_of_a_key_that_was_revoked_since_is_written_down(database):
    remembered, key, before = Verified(60.0), await make_key(database, "admin"), utc_now()
    used(remembered, key)
    await key_store.revoke(database, key.row.id, utc_now(), "test")
    await remembered.refresh(database)
    await remembered.note_use(database, at_once=True)
    assert before <= await last_use(database, key) <= utc_now()


async def test_the_use_of_a_key_that_was_forgotten_since_is_written_down(database, monkeypatch):
    monkeypatch.setattr(verified, "MOST", 1)
    remembered = Verified(60.0)
    pushed_out, forgotten = [await make_key(database, "admin", name=each) for each in "ab"]
    used(remembered, pushed_out)
    used(remembered, forgotten)
    await remembered.note_use(database, at_once=True)
    assert await last_use(database, pushed_out)
    used(remembered, forgotten)
    noted = await last_use(database, forgotten)
    monkeypatch.setattr(verified, "UNUSED_SECONDS", -1.0)
    await remembered.refresh(database)
    await remembered.note_use(database, at_once=True)
    assert await last_use(database, forgotten) > noted


async def test_no_more_uses_wait_for_the_note_than_keys_are_remembered(database, monkeypatch):
    monkeypatch.setattr(verified, "MOST", 2)
    remembered = Verified(60.0)
    keys = [await make_key(database, "admin", name=f"n{number}") for number in range(6)]
    for key in keys:
        used(remembered, key)
    await remembered.note_use(database, at_once=True)
    assert [bool(await last_use(database, key)) for key in keys] == [False] * 2 + [True] * 4


async def test_what_is_written_down_is_when_a_key_was_used_and_not_when_that_was_noted(database):
    remembered, key = Verified(60.0), await make_key(database, "admin")
    used(remembered, key)
    remembered._noted_at = float("-inf")
    assert remembered.find(fingerprint(key.text.encode()), time.monotonic() - 30)
    await remembered.note_use(database, at_once=True)
    age = utc_now() - await last_use(database, key)
    assert timedelta(seconds=30) <= age < timedelta(seconds=55)


async def test_a_use_that_could_not_be_noted_is_noted_later(database, tmp_path):
    remembered, key = Verified(60.0), await make_key(database, "admin")
    used(remembered, key)
    await key_store.revoke(database, key.row.id, utc_now(), "test")
    await remembered.refresh(database)
    away = Database(settings_for(tmp_path, database_url=f"postgresql://nobody@{NOBODY}/nothing"))
    with pytest.raises(DatabaseUnavailableError):
        await remembered.note_use(away, at_once=True)
    await away.close()
    await remembered.note_use(database, at_once=True)
    assert await last_use(database, key)
