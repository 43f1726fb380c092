"""`signin tail` as a user runs it."""

from __future__ import annotations

import asyncio
import json
import re
import signal

import pytest
from google.pubsub_v1 import types

from service.cli.tail import gap_of
from service.local.faults import Fault
from service.subscriber import Past
from tests.tail_world import DATE, JOB_SUBSCRIPTION, PROJECT, signin, tail_world


@pytest.fixture
async def world(tmp_path):
    async with tail_world(tmp_path) as world:
        yield world


async def test_events_are_printed_as_they_come_and_nothing_is_left_behind(world):
    async with world.tail() as tail:
        await tail.note("following")
        (own,) = (await world.subscriptions()) - {JOB_SUBSCRIPTION}
        assert "signin-tail-" in own
        await world.publish(signin(1, city="Köln\x1b[2J"))
        line = await tail.line()
        assert line.split("  ")[1:] == ["user-1", DATE, "e-1", "city=Köln�[2J"]
        await world.publish((b"\x1b[2J{", {}))
        assert (await tail.line()).endswith("invalid_json: �[2J{")
        assert await tail.end(signal.SIGINT) == (0, "")
    assert await world.subscriptions() == {JOB_SUBSCRIPTION}
    assert len(await world.reader.pull(2)) == 2  # the job's own copies


async def test_json_has_the_whole_message_and_a_count_ends_it(world):
    async with world.tail("--json", "--count", "3") as tail:
        await tail.note("following")
        replayed = {"event_id": "replay:r:k", "replay_of": "k", "original_event_id": "first"}
        await world.publish(
            signin(1, k="v"),
            (b"\xff", {"a": "b"}),
            (json.dumps({"userid": "u", "date": DATE}).encode(), replayed),
        )
        await world.publish(signin(4))
        code, out = await tail.end()
    assert code == 0, tail.notes
    first, second, third = map(json.loads, out.splitlines())
    assert first["event"] == {"userid": "user-1", "date": DATE, "event_id": "e-1", "attributes": {"k": "v"}}
    assert (second["reason"], second["payload"], second["attributes"]) == ("invalid_utf8", "/w==", {"a": "b"})
    assert (third["event"]["event_id"], third["attributes"]["replay_of"]) == ("first", "k")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", third["published_at"])
    assert await world.subscriptions() == {JOB_SUBSCRIPTION}


async def test_a_named_subscription_is_kept_and_goes_on_where_it_ended(world):
    async with world.tail("--subscription", "mine", "--count", "1") as tail:
        await tail.note("following")
        await world.publish(signin(1), signin(2))
        code, out = await tail.end()
        assert (code, "user-1" in out) == (0, True)
    assert f"projects/{PROJECT}/subscriptions/mine" in await world.subscriptions()
    await world.publish(signin(3))
    async with world.tail("--subscription", f"projects/{PROJECT}/subscriptions/mine", "--count", "1") as tail:
        assert "user-2" in await tail.line()
        assert (await tail.end())[0] == 0
    async with world.tail("--subscription", "mine", "--since", "now", "--count", "1") as tail:
        await tail.note("following")
        await world.publish(signin(9))
        assert "user-9" in await tail.line()


async def test_a_named_subscription_begins_in_the_past_with_what_waits_there(world):
    async with world.tail("--subscription", "mine", "--count", "1") as tail:
        await tail.note("following")
        await world.publish(signin(0))
        assert (await tail.end())[0] == 0
    await world.publish(signin(1), signin(2))
    async with world.tail("--subscription", "mine", "--since", "10m", "--count", "2") as tail:
        code, out = await tail.end()
    assert code == 0
    assert [line.split("  ")[1] for line in out.splitlines()] == ["user-1", "user-2"]
    assert "acknowledged on this subscription before do not come again" in tail.notes


@pytest.mark.parametrize("name", [[], ["--subscription", "mine"]])
async def test_a_beginning_before_a_new_subscription_is_told_and_what_comes_is_printed(world, name):
    await world.publish(signin(1))
    async with world.tail("--since", "10m", "--count", "1", *name) as tail:
        await tail.note("following")
        assert "The subscription is new, and the topic keeps nothing from before" in tail.notes
        await world.publish(signin(2))
        assert "user-2" in await tail.line()
    async with world.tail("--since", "now", "--count", "1") as tail:
        await tail.note("following")
        assert "is new" not in tail.notes
        assert await tail.end(signal.SIGTERM) == (0, "")


@pytest.mark.parametrize(
    ("past", "age_seconds", "words"),
    [
        (Past(True, 0.0, False), 600, "keeps nothing from before"),
        (Past(True, 3600.0, False), 600, ""),
        (Past(True, 3600.0, False), 7200, "keeps 3600 s from before"),
        (Past(False, 3600.0, False), 600, ""),
        (Past(False, 0.0, True), 600, ""),
        (Past(False, 0.0, False), 600, "do not come again"),
        (Past(True, 0.0, False), 0.2, ""),
    ],
)
def test_what_is_missing_of_the_past_depends_on_what_topic_and_subscription_retain(past, age_seconds, words):
    assert words in gap_of(past, age_seconds)
    assert bool(words) == bool(gap_of(past, age_seconds))


async def test_an_outage_is_told_once_and_outlasted(world):
    async with world.tail() as tail:
        await tail.note("following")
        world.server.faults.set([Fault(method="Pull", code="UNAVAILABLE", times=3)])
        await tail.note("UNAVAILABLE")
        await world.publish(signin(1))
        assert "user-1" in await tail.line()
        assert await tail.end(signal.SIGTERM) == (0, "")
    assert tail.notes.count("UNAVAILABLE") == 1


@pytest.mark.parametrize("method", ["CreateSubscription", "Seek"])
async def test_a_tail_that_cannot_begin_says_so_and_can_be_interrupted(world, method):
    world.server.faults.set([Fault(method=method, code="UNAVAILABLE")])
    async with world.tail("--since", "now") as tail:
        await tail.note("Pub/Sub does not answer (UNAVAILABLE); still trying")
        assert await tail.end(signal.SIGINT) == (0, "")
    assert "following" not in tail.notes
    assert await world.subscriptions() == {JOB_SUBSCRIPTION}


async def test_a_tail_that_ends_while_pubsub_is_away_names_what_it_may_leave_behind(world):
    world.server.faults.set([Fault(code="UNAVAILABLE")])
    async with world.tail() as tail:
        await tail.note("still trying")
        assert await tail.end(signal.SIGINT) == (0, "")
    assert "may be left behind (UNAVAILABLE" in tail.notes
    world.server.faults.set([])


async def test_a_reader_that_goes_away_ends_it(world):
    async with world.tail() as tail:
        await tail.note("following")
        tail.process._transport.get_pipe_transport(1).close()
        await world.publish(signin(1))
        await asyncio.wait_for(tail.process.wait(), 20)
        assert "Traceback" not in tail.notes + (await tail.process.stderr.read()).decode()
    assert await world.subscriptions() == {JOB_SUBSCRIPTION}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--subscription", "x"], 2, "not a name"),
        (["--since", "yesterday"], 2, "neither"),
        (["--subscription", "user-signin-other"], 1, "reads projects/signin-local/topics/other"),
    ],
)
async def test_what_cannot_be_followed_is_told_in_a_sentence(world, arguments, code, words):
    topic, subscription = types.Topic.pb(), types.Subscription.pb()
    other = f"projects/{PROJECT}/topics/other"
    await world.reader.call("Publisher", "CreateTopic", topic(name=other), topic)
    path = f"projects/{PROJECT}/subscriptions/user-signin-other"
    await world.reader.call(
        "Subscriber", "CreateSubscription", subscription(name=path, topic=other), subscription
    )
    async with world.tail(*arguments) as tail:
        assert (await tail.end())[0] == code
    assert words in tail.notes
    assert "Traceback" not in tail.notes


@pytest.mark.parametrize("since", [[], ["--since", "now"]])
async def test_nothing_is_taken_from_the_job_whose_subscription_is_named(world, since):
    await world.publish(signin(1))
    async with world.tail("--subscription", JOB_SUBSCRIPTION.rpartition("/")[2], *since) as tail:
        assert await tail.end() == (1, "")
    assert f"{JOB_SUBSCRIPTION} was not made by tail" in tail.notes
    (left,) = await world.reader.pull(1)
    assert left.data == signin(1)[0]


async def test_a_topic_that_is_not_there_is_named(world):
    world.environment["SIGNIN_TOPIC"] = "nowhere"
    async with world.tail() as tail:
        assert (await tail.end())[0] == 1
    assert "topics/nowhere cannot be subscribed to: NOT_FOUND" in tail.notes
