"""`POST /events/signin/batch` as a caller meets it, with a real Pub/Sub behind it."""

from __future__ import annotations

import gzip
import json

import pytest
import zstandard

from service.app import create_app
from service.local.faults import Fault
from tests.serving import JSON, assert_problem, pubsub_with_topic, serving, settings_for
from transforms import signin_event

PATH = "/events/signin/batch"
NDJSON = {"Content-Type": "application/x-ndjson"}
DATE = "2017-10-17T20:57:17.338320Z"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def signin(userid="1", **fields):
    return {"userid": userid, "date": DATE} | fields


def array(*events):
    return json.dumps(events).encode()


def lines(*events):
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def statuses(response):
    return [(each["index"], each["status"]) for each in response.json()["results"]]


@pytest.mark.parametrize(
    ("body", "headers"),
    [(array, JSON), (lines, NDJSON)],
    ids=["array", "lines"],
)
async def test_every_event_of_a_batch_is_in_the_topic_when_it_is_answered(tmp_path, body, headers):
    async with pubsub_with_topic(tmp_path) as (_, settings, reader), serving(settings) as client:
        events = [signin(f"user-{number}", event_id=f"id-{number}") for number in range(50)]
        response = await client.post(PATH, content=body(*events), headers=headers)
        assert response.status_code == 202, response.text
        results = response.json()["results"]
        assert [each.keys() for each in results] == [
            {"index", "event_id", "status", "message_id", "error"}
        ] * 50
        assert [each["index"] for each in results] == list(range(50))
        assert [each["event_id"] for each in results] == [event["event_id"] for event in events]
        assert {each["status"] for each in results} == {"published"}
        found = {message.message_id: message for message in await reader.pull(50)}
        assert len(found) == 50
        for result, event in zip(results, events, strict=True):
            message = found[result["message_id"]]
            assert message.data == signin_event.encode(signin_event.decode(json.dumps(event).encode()))
            assert message.attributes["event_id"] == event["event_id"]
            assert message.attributes["event_time"] == DATE
            assert message.attributes["schema_version"] == "1"


async def test_what_is_not_valid_is_named_in_its_place_and_the_others_are_taken(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, reader), serving(settings) as client:
        body = array(signin(), signin(date="yesterday"), 17, signin(colour="red"), signin("2"))
        response = await client.post(PATH, content=body, headers=JSON)
        assert response.status_code == 207
        results = response.json()["results"]
        assert [each["status"] for each in results] == [
            "published",
            "failed",
            "failed",
            "failed",
            "published",
        ]
        errors = [each["error"] and (each["error"]["code"], each["error"]["field"]) for each in results]
        assert errors == [
            None,
            ("date_invalid", "date"),
            ("not_an_object", None),
            ("unknown_field", "colour"),
            None,
        ]
        assert not any(each["error"]["retryable"] for each in results if each["error"])
        assert len(await reader.pull(3)) == 2


async def test_a_repeated_event_id_is_published_once(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, reader), serving(settings) as client:
        body = array(signin("first", event_id="a"), signin("second", event_id="a"), signin(event_id="b"))
        response = await client.post(PATH, content=body, headers=JSON)
        assert response.status_code == 207
        duplicate = response.json()["results"][1]
        assert (duplicate["event_id"], duplicate["status"]) == ("a", "failed")
        assert (duplicate["error"]["code"], duplicate["error"]["field"]) == ("duplicate_event_id", "event_id")
        found = await reader.pull(3)
        assert sorted(message.attributes["event_id"] for message in found) == ["a", "b"]
        assert {signin_event.decode(message.data).userid for message in found} == {"first", "1"}


async def test_a_batch_with_an_idempotency_key_gives_the_same_ids_again(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, _reader), serving(settings) as client:
        body = array(signin(), signin(event_id="own"), signin("3"))
        headers = JSON | {"Idempotency-Key": "k"}
        for _ in range(2):
            answer = (await client.post(PATH, content=body, headers=headers)).json()
            assert [each["event_id"] for each in answer["results"]] == ["k:0", "own", "k:2"]


@pytest.mark.parametrize("key", ["a b", "", "x" * 125])
async def test_an_idempotency_key_that_makes_no_event_ids_is_refused(tmp_path, key):
    async with serving(settings_for(tmp_path)) as client:
        response = await client.post(PATH, content=array(signin()), headers=JSON | {"Idempotency-Key": key})
        assert assert_problem(response, 422, "event_id_invalid")["field"] == "Idempotency-Key"


async def test_without_a_key_every_event_gets_an_id_of_its_own(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, _reader), serving(settings) as client:
        response = await client.post(PATH, content=array(*[signin()] * 20), headers=JSON)
        assert response.status_code == 202
        assert len({each["event_id"] for each in response.json()["results"]}) == 20


async def test_each_message_carries_the_batchs_trace_context_and_request_id(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, reader), serving(settings) as client:
        headers = JSON | {"traceparent": TRACEPARENT, "tracestate": "a=1,b=2", "X-Request-ID": "r-1"}
        response = await client.post(PATH, content=array(signin(), signin()), headers=headers)
        assert response.headers["x-request-id"] == "r-1"
        found = [dict(message.attributes) for message in await reader.pull(2)]
        names = ("traceparent", "tracestate", "request_id")
        assert [[each[name] for name in names] for each in found] == [[TRACEPARENT, "a=1,b=2", "r-1"]] * 2


async def test_a_batch_without_one_valid_event_is_a_problem_with_results(tmp_path):
    async with serving(settings_for(tmp_path)) as client:
        response = await client.post(PATH, content=array(1, signin("")), headers=JSON)
        problem = assert_problem(response, 422, "invalid_batch")
        assert [each["error"]["code"] for each in problem["results"]] == ["not_an_object", "userid_invalid"]
        assert [each["index"] for each in problem["results"]] == [0, 1]


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"", JSON, 400, "empty_body"),
        (b"[{]", JSON, 400, "invalid_json"),
        (b'["\xff"]', JSON, 400, "invalid_utf8"),
        (b"{}", JSON, 400, "not_an_array"),
        (b"[]", JSON, 422, "empty_batch"),
        (b"\n", NDJSON, 400, "empty_body"),
        (array(*[signin()] * 1001), JSON, 413, "batch_too_large"),
        (lines(*[signin()] * 1001), NDJSON, 413, "batch_too_large"),
        (b" " * 5_000_001, JSON, 413, "body_too_large"),
        (array(signin()), {}, 415, "unsupported_media_type"),
        (array(signin()), {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        (array(signin()), JSON | {"Content-Encoding": "br"}, 415, "unsupported_media_type"),
        (array(signin()), JSON | {"Content-Encoding": "gzip"}, 400, "invalid_encoding"),
        (gzip.compress(b" " * 5_000_001), JSON | {"Content-Encoding": "gzip"}, 413, "body_too_large"),
    ],
)
async def test_a_body_that_is_broken_as_a_whole_is_refused(tmp_path, body, headers, status, code):
    async with serving(settings_for(tmp_path)) as client:
        assert_problem(await client.post(PATH, content=body, headers=headers), status, code)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_a_compressed_batch_is_taken(tmp_path, encoding):
    compress = gzip.compress if encoding == "gzip" else zstandard.ZstdCompressor().compress
    async with pubsub_with_topic(tmp_path) as (_, settings, reader), serving(settings) as client:
        body = compress(array(*[signin(str(number)) for number in range(1000)]))
        response = await client.post(PATH, content=body, headers=JSON | {"Content-Encoding": encoding})
        assert response.status_code == 202
        assert len(await reader.pull(1000)) == 1000


async def test_a_permanent_refusal_of_the_whole_batch_is_a_502_with_results(tmp_path):
    async with pubsub_with_topic(tmp_path) as (server, settings, _), serving(settings) as client:
        server.faults.set([Fault(method="Publish", code="INVALID_ARGUMENT")])
        body = array(signin(event_id="a"), 17)
        response = await client.post(PATH, content=body, headers=JSON)
        problem = assert_problem(response, 502, "publish_refused")
        assert problem["retryable"] is False
        codes = [(each["event_id"], each["error"]["code"]) for each in problem["results"]]
        assert codes == [("a", "publish_refused"), (None, "not_an_object")]


async def test_when_all_valid_events_failed_for_now_the_batch_may_be_sent_again(tmp_path):
    async with (
        pubsub_with_topic(tmp_path, publish_inflight_bytes=1024) as (_server, settings, _),
        serving(settings) as client,
    ):
        large = signin(event_id="a", attributes={"a": "x" * 1024, "b": "x" * 1024})
        response = await client.post(PATH, content=array(large, 17), headers=JSON)
        problem = assert_problem(response, 503, "publish_overloaded")
        assert problem["retryable"] is True
        assert [each["error"]["retryable"] for each in problem["results"]] == [True, False]


def test_openapi_names_every_answer_of_the_route(tmp_path):
    operation = create_app(settings_for(tmp_path)).openapi()["paths"][PATH]["post"]
    statuses = {"202", "207", "400", "408", "413", "415", "422", "431", "500", "502", "503"}
    access = {"401", "403", "421", "429"}
    assert set(operation["responses"]) == statuses | access
    assert set(operation["requestBody"]["content"]) == {"application/json", "application/x-ndjson"}
    for code in ("batch_too_large", "empty_batch", "not_an_array", "outbox_full", "invalid_encoding"):
        assert any(f"`{code}`" in each["description"] for each in operation["responses"].values())
