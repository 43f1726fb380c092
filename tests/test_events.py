"""`POST /events/signin` as a caller meets it, with a real Pub/Sub behind it."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import time
from datetime import UTC, datetime, timedelta

import pytest
import zstandard

from service.event_ids import new_event_id
from service.local.faults import Fault
from tests.serving import (
    ARTICLE,
    HANGING,
    JSON,
    NOBODY,
    assert_problem,
    pubsub_with_topic,
    serving,
    settings_for,
)
from transforms import signin_event

PATH = "/events/signin"
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def signin(**fields):
    return json.dumps(json.loads(ARTICLE) | fields).encode()


async def test_the_message_of_the_article_is_in_the_topic_when_it_is_answered(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, reader), serving(settings) as client:
        response = await client.post(PATH, content=ARTICLE, headers=JSON)
        assert response.status_code == 202
        answer = response.json()
        assert answer.keys() == {"event_id", "status", "message_id"}
        assert answer["status"] == "published"
        assert UUID7.fullmatch(answer["event_id"])
        [message] = await reader.pull(1)
        assert message.message_id == answer["message_id"]
        assert signin_event.decode(message.data) == signin_event.SigninEvent(
            "93234234", "2017-10-17T20:57:17.338320Z", answer["event_id"], {}
        )
        assert dict(message.attributes) == {
            "event_id": answer["event_id"],
            "event_time": "2017-10-17T20:57:17.338320Z",
            "schema_version": "1",
            "request_id": response.headers["x-request-id"],
        }


async def test_an_event_keeps_its_own_id_then_the_idempotency_key(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, reader), serving(settings) as client:
        headers = JSON | {"Idempotency-Key": "key-1"}
        own = await client.post(PATH, content=signin(event_id="own-1"), headers=headers)
        keyed = await client.post(PATH, content=ARTICLE, headers=headers)
        assert (own.json()["event_id"], keyed.json()["event_id"]) == ("own-1", "key-1")
        found = await reader.pull(2)
        assert [message.attributes["event_id"] for message in found] == ["own-1", "key-1"]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (TRACEPARENT, True),
        (TRACEPARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32), False),
        ("ff" + TRACEPARENT[2:], False),
        ("nonsense", False),
    ],
)
async def test_only_a_well_formed_trace_context_travels_with_the_message(tmp_path, sent, kept):
    async with pubsub_with_topic(tmp_path) as (_, settings, reader), serving(settings) as client:
        response = await client.post(PATH, content=ARTICLE, headers=JSON | {"traceparent": sent})
        assert response.status_code == 202
        [message] = await reader.pull(1)
        assert message.attributes.get("traceparent") == (sent if kept else None)


@pytest.mark.parametrize(
    ("parent", "state", "kept"),
    [
        (TRACEPARENT, "vendor=00f067aa0ba902b7,other@system=t61rcWkgMzE", True),
        (TRACEPARENT, "a=" + "x" * 200 + ", b=1", True),
        (TRACEPARENT, "nonsense", False),
        (TRACEPARENT, "a=" + "x" * 511, False),
        (TRACEPARENT, "a=b=c", False),
        ("nonsense", "a=1", False),
    ],
)
async def test_a_trace_state_travels_only_if_it_and_its_parent_are_well_formed(tmp_path, parent, state, kept):
    async with pubsub_with_topic(tmp_path) as (_, settings, reader), serving(settings) as client:
        headers = JSON | {"traceparent": parent, "tracestate": state}
        assert (await client.post(PATH, content=ARTICLE, headers=headers)).status_code == 202
        [message] = await reader.pull(1)
        assert message.attributes.get("tracestate") == (state if kept else None)


async def test_the_request_id_of_the_caller_travels_with_the_message(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, reader), serving(settings) as client:
        await client.post(PATH, content=ARTICLE, headers=JSON | {"X-Request-ID": "r-1"})
        [message] = await reader.pull(1)
        assert message.attributes["request_id"] == "r-1"


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress])
async def test_a_compressed_event_is_taken(tmp_path, compress):
    encoding = "gzip" if compress is gzip.compress else "zstd"
    async with pubsub_with_topic(tmp_path) as (_, settings, reader), serving(settings) as client:
        headers = JSON | {"Content-Encoding": encoding}
        response = await client.post(PATH, content=compress(ARTICLE), headers=headers)
        assert response.status_code == 202
        bomb = await client.post(PATH, content=compress(b" " * 66_000), headers=headers)
        assert_problem(bomb, 413, "body_too_large")
        broken = await client.post(PATH, content=compress(ARTICLE)[:-1], headers=headers)
        assert_problem(broken, 400, "invalid_encoding")
        assert len(await reader.pull(1)) == 1


AHEAD = (datetime.now(UTC) + timedelta(days=3)).isoformat()


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (signin(userid=93234234), 422, "userid_invalid", "userid"),
        (b'{"date": "2017-10-17T20:57:17Z"}', 422, "userid_missing", "userid"),
        (b'{"userid": "1"}', 422, "date_missing", "date"),
        (signin(date="yesterday"), 422, "date_invalid", "date"),
        pytest.param(signin(date=AHEAD), 422, "date_in_future", "date", id="ahead"),
        (signin(colour="red"), 422, "unknown_field", "colour"),
        (signin(event_id="a b"), 422, "event_id_invalid", "event_id"),
        (signin(attributes={"a": 1}), 422, "attributes_invalid", "attributes"),
        (b"[]", 422, "not_an_object", None),
        (b'{"userid": ', 400, "invalid_json", None),
        (b"\xff\xfe", 400, "invalid_utf8", None),
        (b"", 400, "empty_body", None),
    ],
)
async def test_what_is_not_a_signin_is_refused_with_its_own_code(tmp_path, body, status, code, field):
    async with serving(settings_for(tmp_path)) as client:
        response = await client.post(PATH, content=body, headers=JSON)
        problem = assert_problem(response, status, code)
        assert problem.get("field") == field
        assert problem["retryable"] is False


async def test_an_idempotency_key_that_cannot_be_an_event_id_is_refused(tmp_path):
    async with serving(settings_for(tmp_path)) as client:
        for body in (ARTICLE, ARTICLE[:-1] + b', "event_id": "e-1"}'):  # also where it is not needed
            response = await client.post(PATH, content=body, headers=JSON | {"Idempotency-Key": "a b"})
            assert assert_problem(response, 422, "event_id_invalid")["field"] == "Idempotency-Key"


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application"]
)
async def test_a_body_that_does_not_say_that_it_is_json_is_refused(tmp_path, content_type):
    headers = {"Content-Type": content_type} if content_type else {}
    async with serving(settings_for(tmp_path)) as client:
        response = await client.post(PATH, content=ARTICLE, headers=headers)
        assert (
            "Content-Type: application/json"
            in assert_problem(response, 415, "unsupported_media_type")["detail"]
        )


async def test_parameters_and_case_of_the_content_type_do_not_matter(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, _reader), serving(settings) as client:
        headers = {"Content-Type": "Application/JSON ; charset=utf-8"}
        assert (await client.post(PATH, content=ARTICLE, headers=headers)).status_code == 202


async def test_two_megabytes_are_refused_unread(tmp_path):
    async with serving(settings_for(tmp_path)) as client:
        response = await client.post(PATH, content=b" " * 2_000_000, headers=JSON)
        assert_problem(response, 413, "body_too_large")
        assert response.headers["connection"] == "close"


async def test_a_body_of_unknown_length_is_read_no_further_than_the_limit(tmp_path):
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 10_000
            yield b" " * 10_000

    settings = settings_for(tmp_path)
    async with serving(settings) as client:
        response = await client.post(PATH, content=endless(), headers=JSON)
        assert_problem(response, 413, "body_too_large")
        assert sent <= settings.max_body_bytes + 20_000


async def test_a_body_that_does_not_arrive_is_given_up(tmp_path):
    async def stalled():
        yield b"{"
        await asyncio.sleep(60)

    async with serving(settings_for(tmp_path, body_deadline_seconds=0.1)) as client:
        response = await client.post(PATH, content=stalled(), headers=JSON)
        assert_problem(response, 408, "body_timeout")
        assert response.headers["connection"] == "close"


async def test_a_pubsub_that_is_not_there_is_a_503_within_the_deadline(tmp_path):
    async with serving(settings_for(tmp_path, NOBODY, publish_deadline_seconds=10)) as client:
        started = time.monotonic()
        problem = assert_problem(
            await client.post(PATH, content=ARTICLE, headers=JSON), 503, "publish_unavailable"
        )
        assert time.monotonic() - started < 10
        assert problem["retryable"] is True
        assert problem["retry_after"] >= 1


async def test_a_pubsub_that_hangs_is_a_503_at_the_deadline(tmp_path):
    async with (
        pubsub_with_topic(tmp_path, publish_deadline_seconds=0.5) as (server, settings, _),
        serving(settings) as client,
    ):
        server.faults.set([HANGING])
        started = time.monotonic()
        response = await client.post(PATH, content=ARTICLE, headers=JSON)
        assert time.monotonic() - started < 5
        assert_problem(response, 503, "publish_unavailable")


async def test_a_refusal_of_pubsub_is_a_502_that_is_not_retryable(tmp_path):
    async with pubsub_with_topic(tmp_path) as (server, settings, _), serving(settings) as client:
        server.faults.set([Fault(method="Publish", code="INVALID_ARGUMENT")])
        response = await client.post(PATH, content=ARTICLE, headers=JSON)
        assert assert_problem(response, 502, "publish_refused")["retryable"] is False


def test_new_event_ids_are_distinct_uuids_of_version_seven_that_carry_the_time():
    before = time.time_ns() // 1_000_000
    ids = [new_event_id() for _ in range(10_000)]
    assert len(set(ids)) == 10_000
    assert all(UUID7.fullmatch(each) for each in ids)
    assert all(0 <= int(each.replace("-", "")[:12], 16) - before < 10_000 for each in ids)
