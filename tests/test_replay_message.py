"""The message of a replay: which letter is which, what its message carries, and what becomes of it again."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from apache_beam.pvalue import TaggedOutput
from google.pubsub_v1 import PubsubMessage
from hypothesis import given
from hypothesis import strategies as st

from service.dead_letters.letters import Letter
from transforms.pubsub_message import MessageExtractingFn
from transforms.replay import event_id_of, replay_attributes
from transforms.signin_event import is_event_id

SOME_LETTER = Letter(
    failed_at=datetime(2026, 1, 2, tzinfo=UTC),
    stage="decode",
    reason="invalid_json",
    detail="",
    payload=b"{",
    attributes={"event_id": "e-1", "trace": "t"},
    message_id="17",
    publish_time=datetime(2026, 1, 1, tzinfo=UTC),
    event_id="e-1",
)


def changed(**values):
    return Letter(**({name: getattr(SOME_LETTER, name) for name in Letter.__slots__} | values))


def test_two_rows_of_one_message_are_one_letter():
    again = changed(
        failed_at=datetime(2026, 5, 5, tzinfo=UTC), reason="row_refused", stage="write", detail="x"
    )
    assert again.key == SOME_LETTER.key


@pytest.mark.parametrize("change", [{"message_id": "18"}, {"publish_time": datetime(2026, 1, 2, tzinfo=UTC)}])
def test_another_message_is_another_letter(change):
    assert changed(**change).key != SOME_LETTER.key


@pytest.mark.parametrize(
    "change", [{"payload": b"}"}, {"event_id": "e-2"}, {"attributes": {"line": "2"}}, {"publish_time": None}]
)
def test_without_a_message_id_the_content_tells_letters_apart(change):
    nameless = changed(message_id=None)
    assert changed(message_id=None).key == nameless.key != SOME_LETTER.key
    assert changed(message_id=None, **change).key != nameless.key


def test_a_replay_is_no_copy_for_the_deduplication_and_keeps_its_event_id():
    payload, first = SOME_LETTER.message("a" * 20)
    _, second = SOME_LETTER.message("b" * 20)
    assert payload == SOME_LETTER.payload
    assert first["trace"] == "t"
    assert len({"e-1", first["event_id"], second["event_id"]}) == 3
    assert is_event_id(first["event_id"])
    assert SOME_LETTER.message("a" * 20)[1] == first
    assert event_id_of(first) == event_id_of(second) == "e-1"


def test_a_letter_without_an_event_id_gets_the_same_one_at_each_replay():
    nameless = changed(attributes={}, event_id=None)
    ids = {event_id_of(nameless.message(replay_id)[1]) for replay_id in ("a", "b")}
    assert ids == {f"letter:{nameless.key}"}
    assert is_event_id(ids.pop())


def test_a_letter_that_knows_its_event_id_only_by_the_column_keeps_it():
    assert event_id_of(changed(attributes={}).message("a")[1]) == "e-1"


@given(st.dictionaries(st.text(), st.text(), max_size=5), st.lists(st.sampled_from("abc"), min_size=1))
def test_however_often_a_letter_fails_again_its_event_id_and_its_attributes_stay(attributes, replays):
    key = SOME_LETTER.key
    attributes = {name: value for name, value in attributes.items() if not name.startswith("goog")}
    attributes.pop("replay_of", None)
    wanted = event_id_of(attributes) or f"letter:{key}"
    current = attributes
    for name in replays:
        current = replay_attributes(current, key, name)
        assert event_id_of(current) == wanted
        assert current["event_id"] == f"replay:{name}:{key}"
    own = {"event_id", "replay_of", "original_event_id"}
    assert {n: v for n, v in current.items() if n not in own} == {
        n: v for n, v in attributes.items() if n not in own
    }


def processed(letter):
    """What the job makes of a letter's replay: the row, or the next dead letter."""
    data, attributes = letter.message("r" * 20)
    (output,) = MessageExtractingFn().process(PubsubMessage.pb()(data=data, attributes=attributes))
    return output.value if isinstance(output, TaggedOutput) else output


def test_what_fails_again_is_a_new_letter_of_the_same_event_and_can_be_replayed_again():
    row = processed(SOME_LETTER)
    assert (row["reason"], row["event_id"]) == ("invalid_json", "e-1")
    attributes = {record["key"]: record["value"] for record in row["attributes"]}
    assert attributes["replay_of"] == SOME_LETTER.key
    second = changed(attributes=attributes, event_id=row["event_id"], message_id="99")
    assert second.key != SOME_LETTER.key
    assert processed(second)["event_id"] == "e-1"


@pytest.mark.parametrize(
    ("attributes", "event_id"), [({"event_id": "e-1"}, "e-1"), ({}, f"letter:{changed(event_id=None).key}")]
)
def test_the_row_of_a_replay_has_the_event_id_of_the_first_message(attributes, event_id):
    payload = b'{"userid": "u", "date": "2026-01-02T03:04:05Z"}'
    mended = changed(payload=payload, attributes=attributes, event_id=attributes.get("event_id"))
    assert processed(mended)["event_id"] == event_id
