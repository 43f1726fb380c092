"""A dead letter as a message: its bytes and what it is, within limits; a topic that is away stops nobody."""

from __future__ import annotations

import time

import grpc
import pytest
from google.pubsub_v1 import types
from hypothesis import given
from hypothesis import strategies as st

from service.local.faults import Fault, set_faults
from tests.engine_place import Place
from tests.pubsub_process import PubsubProcess
from tests.write_servers import write_servers
from transforms import dead_letter_topic
from transforms.bigquery_rows import dead_letter_row
from transforms.dead_letter_topic import Publisher, Topic, attributes

LETTER = dead_letter_row(
    stage="decode",
    reason="invalid_utf8",
    detail="byte 0 is not UTF-8",
    payload=b"\xff\x00",
    attributes={"event_id": "id-1", "k": "v"},
    message_id="m-1",
    event_id="id-1",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with PubsubProcess(tmp_path_factory.mktemp("pubsub")) as process:
        yield process.address


@pytest.fixture
def place(server):
    place = Place(server)
    yield place
    set_faults(server, [])
    place.channel.close()


def received(place):
    request = {"subscription": place.subscription, "max_messages": 1000}
    return [one.message for one in place.subscribers.pull(request, timeout=10).received_messages]


def test_a_letter_is_a_message_with_its_bytes_and_attributes(place):
    assert Publisher(place.channel, place.topic).publish([LETTER]) == 0
    (message,) = received(place)
    assert message.data == b"\xff\x00"
    found = dict(message.attributes)
    assert found.pop("dead_letter_failed_at")
    assert found == {
        "dead_letter_stage": "decode",
        "dead_letter_reason": "invalid_utf8",
        "dead_letter_detail": "byte 0 is not UTF-8",
        "dead_letter_message_id": "m-1",
        "dead_letter_event_id": "id-1",
        "event_id": "id-1",
        "k": "v",
    }


def test_a_letter_that_comes_back_as_a_message_is_not_published_again(place):
    publisher = Publisher(place.channel, place.topic)
    publisher.publish([LETTER])
    (message,) = received(place)
    again = dead_letter_row(
        stage="decode",
        reason="invalid_utf8",
        detail="byte 0 is not UTF-8",
        payload=message.data,
        attributes=message.attributes,
    )
    assert publisher.publish([again, LETTER, again]) == 0
    assert [one.attributes["event_id"] for one in received(place)] == ["id-1"]


def test_a_letter_that_comes_back_is_written_and_does_not_count_as_published(place):
    again = LETTER | {"attributes": [{"key": "dead_letter_reason", "value": "invalid_utf8"}]}
    with write_servers("INSERT_ALL") as servers:
        counters = servers.write_letters([again, LETTER, again], Topic(place.topic, place.address))
    assert counters == {"dead_letters_written": 3, "dead_letters_published": 1}


def test_a_short_outage_of_the_topic_is_waited_for(place):
    set_faults(place.address, [Fault(method="Publish", code="UNAVAILABLE", times=2)])
    assert Publisher(place.channel, place.topic).publish([LETTER]) == 0
    assert len(received(place)) == 1


@pytest.mark.parametrize("code", ["UNAVAILABLE", "PERMISSION_DENIED"])
def test_a_topic_that_is_away_is_counted_and_stops_nobody(place, code, caplog):
    set_faults(place.address, [Fault(method="Publish", code=code)])
    assert Publisher(place.channel, place.topic).publish([LETTER] * 3) == 3
    assert f"3 dead letters are not in {place.topic}, but in their table: {code}" in caplog.text


def test_a_topic_that_never_answers_holds_up_all_letters_together_no_longer_than_one_deadline(
    place, monkeypatch
):
    monkeypatch.setattr(dead_letter_topic, "CALL_SECONDS", 0.5)
    monkeypatch.setattr(dead_letter_topic, "PUBLISH_SECONDS", 1.0, raising=False)
    set_faults(place.address, [Fault(method="Publish", hold=True)])
    begun = time.monotonic()
    assert Publisher(place.channel, place.topic).publish([LETTER] * 2_000) == 2_000
    assert time.monotonic() - begun < 3


def test_many_letters_go_in_calls_within_the_limits():
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        publisher = Publisher(channel, "projects/p/topics/t")
        large = dead_letter_row(stage="decode", reason="r", detail="", payload=b"x" * 3_000_000)
        calls = list(publisher._calls([LETTER] * 1200 + [large] * 5))
    assert sum(map(len, calls)) == 1205
    request = types.PublishRequest.pb()
    for call in calls:
        assert len(call) <= 1000
        assert request(topic="projects/p/topics/t", messages=call).ByteSize() < 10_000_000


@given(st.dictionaries(st.text(max_size=300), st.text(max_size=1500), max_size=120), st.text(max_size=2000))
def test_attributes_stay_within_pubsub_s_limits_whatever_the_message_had(own, detail):
    letter = dead_letter_row(stage="decode", reason="r", detail=detail, payload=b"", attributes=own)
    found = attributes(letter)
    assert len(found) <= 100
    for name, value in found.items():
        assert 0 < len(name.encode()) <= 256
        assert len(value.encode()) <= 1024
