"""The outbox table: group commits, bounds and claims."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from service.errors import OutboxFullError
from service.group_commit import GROUP_ROWS
from service.outbox import Outbox
from service.outbox import message as kept
from tests.publishing import message, outbox_events, settings_with


@pytest.fixture
async def outbox(database, database_url):
    return Outbox(database, settings_with(database_url))


def event_ids(claim):
    return [kept(row)[1]["event_id"] for row in claim.rows]


async def test_spooled_messages_come_out_as_they_went_in(outbox):
    messages = [
        (b"\x00\xff binary", {"event_id": "1", "traceparent": "00-ab"}),
        ("grüße \U0001f600".encode(), {"event_id": "2", "note": 'quote " backslash \\ nul \x00 é'}),
        (b"", {}),
    ]
    await outbox.spool(messages)
    claim = await outbox.claim(10, 1_000_000)
    assert [kept(row) for row in claim.rows] == messages
    assert [row.event_id for row in claim.rows] == ["1", "2", ""]


async def test_rows_have_the_moment_of_their_commit_and_their_size(outbox):
    await outbox.spool([message(1)])
    [row] = await outbox_events(outbox)
    assert abs(datetime.now(UTC) - row["created_at"]) < timedelta(seconds=10)
    assert row["bytes"] == len(row["data"]) + len(row["attributes"])
    assert (row["attempts"], row["claimed_by"], row["parked_at"]) == (0, None, None)


async def test_callers_at_the_same_time_share_commits_and_keep_their_order(outbox):
    await asyncio.gather(*(outbox.spool([message(i)]) for i in range(3000)))
    rows = await outbox_events(outbox)
    assert [row["event_id"] for row in rows] == [f"event-{i}" for i in range(3000)]
    assert len({row["created_at"] for row in rows}) < 30
    assert (outbox.rows, outbox.bytes) == (3000, sum(row["bytes"] for row in rows))


async def test_more_rows_than_a_group_holds_are_committed_all(outbox):
    await outbox.spool([message(i) for i in range(GROUP_ROWS + 10)])
    assert (await outbox.status()).waiting == GROUP_ROWS + 10


async def test_a_caller_that_goes_away_leaves_its_rows_and_the_others_in_peace(outbox):
    tasks = [asyncio.create_task(outbox.spool([message(i)])) for i in range(10)]
    await asyncio.sleep(0)
    tasks[3].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [answer is None for answer in answers] == [i != 3 for i in range(10)]
    assert len(await outbox_events(outbox)) == 10


async def test_rows_beyond_the_bound_are_refused_and_nothing_of_them_is_stored(database, database_url):
    outbox = Outbox(database, settings_with(database_url, outbox_max_rows=5))
    await outbox.spool([message(i) for i in range(4)])
    with pytest.raises(OutboxFullError) as caught:
        await outbox.spool([message(8), message(9)])
    assert caught.value.retry_after_seconds == 2
    await outbox.spool([message(4)])
    assert len(await outbox_events(outbox)) == 5


async def test_bytes_beyond_the_bound_are_refused(database, database_url):
    outbox = Outbox(database, settings_with(database_url, outbox_max_bytes=2000))
    await outbox.spool([(b"x" * 1500, {})])
    with pytest.raises(OutboxFullError):
        await outbox.spool([(b"x" * 1500, {})])
    await outbox.spool([(b"x" * 100, {})])


async def test_what_is_on_its_way_counts_against_the_bound(database, database_url):
    outbox = Outbox(database, settings_with(database_url, outbox_max_rows=50))
    answers = await asyncio.gather(*(outbox.spool([message(i)]) for i in range(80)), return_exceptions=True)
    assert sum(answer is None for answer in answers) == 50
    assert sum(isinstance(answer, OutboxFullError) for answer in answers) == 30


async def test_room_comes_back_when_events_are_published(database, database_url):
    outbox = Outbox(database, settings_with(database_url, outbox_max_rows=10))
    await outbox.spool([message(i) for i in range(10)])
    claim = await outbox.claim(6, 1_000_000)
    await outbox.finish(claim, [row.id for row in claim.rows], {})
    assert (outbox.rows, (await outbox.status()).rows) == (4, 4)
    await outbox.spool([message(i) for i in range(6)])


async def test_the_bounds_hold_for_what_another_process_spooled(database, database_url):
    first, second = (Outbox(database, settings_with(database_url, outbox_max_rows=10)) for _ in range(2))
    await first.spool([message(i) for i in range(10)])
    await second.count()
    with pytest.raises(OutboxFullError):
        await second.spool([message(1)])


async def test_claims_are_the_oldest_and_nobody_else_gets_them(outbox):
    await outbox.spool([message(i) for i in range(10)])
    assert event_ids(await outbox.claim(4, 1_000_000)) == [f"event-{i}" for i in range(4)]
    assert event_ids(await outbox.claim(4, 1_000_000)) == [f"event-{i}" for i in range(4, 8)]
    assert event_ids(await outbox.claim(4, 1_000_000)) == ["event-8", "event-9"]
    assert event_ids(await outbox.claim(4, 1_000_000)) == []


async def test_a_claim_of_large_events_takes_fewer_of_them(outbox):
    await outbox.spool([(b"x" * 10_000, {}) for _ in range(100)])
    assert len((await outbox.claim(100, 200_000)).rows) == 19


async def test_what_is_given_back_can_be_claimed_again_and_counts_its_attempts(outbox):
    await outbox.spool([message(i) for i in range(3)])
    claim = await outbox.claim(3, 1_000_000)
    await outbox.finish(claim, [claim.rows[0].id], {})
    assert event_ids(await outbox.claim(3, 1_000_000)) == ["event-1", "event-2"]
    assert [row["attempts"] for row in await outbox_events(outbox)] == [2, 2]


async def test_a_claim_that_expired_cannot_touch_the_rows_of_its_successor(database, database_url):
    now = datetime.now(UTC)
    slow, quick = (Outbox(database, settings_with(database_url), lambda: now) for _ in range(2))
    await slow.spool([message(1)])
    old = await slow.claim(1, 1_000_000)
    now += timedelta(seconds=60)
    new = await quick.claim(1, 1_000_000)
    assert len(new.rows) == 1
    await slow.finish(old, [row.id for row in old.rows], {})
    assert [row["claimed_by"] for row in await outbox_events(quick)] == [new.token]
    await quick.finish(new, [row.id for row in new.rows], {})
    assert await outbox_events(quick) == []


async def test_parked_events_are_not_claimed_and_keep_their_reason(outbox):
    await outbox.spool([message(i) for i in range(3)])
    claim = await outbox.claim(3, 1_000_000)
    await outbox.finish(claim, [claim.rows[0].id], {claim.rows[1].id: "it is too blue"})
    assert event_ids(await outbox.claim(3, 1_000_000)) == ["event-2"]
    [(reason, count, _)] = await outbox.parked_reasons()
    assert (reason, count) == ("it is too blue", 1)
    status = await outbox.status()
    assert (status.rows, status.parked, status.waiting, outbox.parked) == (2, 1, 1, 1)
    assert await outbox.release("nobody") == 0
    assert await outbox.release("event-1") == 1
    assert event_ids(await outbox.claim(3, 1_000_000)) == ["event-1"]


async def test_the_age_is_that_of_the_oldest_event_that_waits(database, database_url):
    now = datetime(2026, 1, 1, tzinfo=UTC)
    outbox = Outbox(database, settings_with(database_url), lambda: now)
    assert (await outbox.status()).oldest_at is None
    await outbox.spool([message(1)])
    now += timedelta(hours=1)
    await outbox.spool([message(2)])
    assert (await outbox.status()).oldest_at == datetime(2026, 1, 1, tzinfo=UTC)
    claim = await outbox.claim(1, 1_000_000)
    await outbox.finish(claim, [], {claim.rows[0].id: "refused"})
    assert (await outbox.status()).oldest_at == now


async def test_a_look_whether_events_can_be_kept_is_no_event_for_the_relay(outbox):
    await outbox.require_writable()
    assert await outbox_events(outbox) == []
    assert not outbox.arrived.is_set()
