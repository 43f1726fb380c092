"""Any bytes with any attributes give exactly one row or exactly one dead letter."""

from __future__ import annotations

import base64
import json
import pickle
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import apache_beam as beam
import pytest
from apache_beam import pvalue
from apache_beam.io.gcp.pubsub import PubsubMessage as BeamMessage
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from google.pubsub_v1 import types
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.signin_samples import Sample, load_samples
from transforms.bigquery_rows import DEAD_LETTER_COLUMNS, SIGNIN_COLUMNS, to_row
from transforms.pubsub_message import DEAD_LETTERS, MessageExtractingFn
from transforms.signin_event import UNDECODABLE, SigninEvent

RawMessage = types.PubsubMessage.pb()
SAMPLES = load_samples()
GOOD = b'{"userid": "93234234", "date": "2017-10-17T20:57:17.338320"}'
ROW = {"userid": "93234234", "date": "2017-10-17T20:57:17.338320Z"}


def extract(*elements: Any, **options: str) -> list[tuple[str, dict[str, Any]]]:
    """Runs one bundle; each output is a pair of its tag (`rows` for the main one) and the dictionary."""
    fn = MessageExtractingFn(**options)
    fn.start_bundle()
    outputs = [output for element in elements for output in fn.process(element)]
    return [
        (output.tag, output.value) if isinstance(output, pvalue.TaggedOutput) else ("rows", output)
        for output in outputs
    ]


def raw_message(data: bytes = GOOD, **fields: Any) -> Any:
    message = RawMessage(data=data, message_id="7", **fields)
    message.publish_time.FromDatetime(datetime(2024, 1, 2, 3, 4, 5, 678901, tzinfo=UTC))
    return message


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_each_sample_becomes_the_row_or_dead_letter_that_the_file_says(sample: Sample):
    ((tag, row),) = extract(sample.body)
    if isinstance(sample.outcome, SigninEvent):
        assert (tag, row) == ("rows", to_row(sample.outcome))
        return
    assert tag == DEAD_LETTERS
    assert row["reason"] == sample.error
    assert row["stage"] == ("decode" if sample.error in UNDECODABLE else "validate")
    assert base64.b64decode(row["payload"]) == sample.body


texts = st.text(max_size=12)
surrogates = st.text(st.characters(), max_size=12)
bodies = st.one_of(st.binary(max_size=80), st.sampled_from([sample.body for sample in SAMPLES]))
times = st.one_of(st.none(), st.datetimes(), st.datetimes(timezones=st.timezones()))


@st.composite
def raw_messages(draw: st.DrawFn) -> Any:
    attributes = draw(st.dictionaries(st.one_of(texts, st.just("event_id")), texts, max_size=4))
    message = RawMessage(data=draw(bodies), attributes=attributes, message_id=draw(texts))
    if draw(st.booleans()):
        message.publish_time.seconds = draw(st.integers(-(2**63), 2**63 - 1))
        message.publish_time.nanos = draw(st.integers(-(2**31), 2**31 - 1))
    return message


beam_messages = st.builds(
    BeamMessage,
    data=bodies,
    attributes=st.none()
    | st.dictionaries(st.one_of(surrogates, st.just("event_id")), surrogates, max_size=4),
    message_id=st.none() | surrogates,
    publish_time=times,
)


@given(st.one_of(bodies, raw_messages(), beam_messages))
@settings(max_examples=2000, deadline=None)
def test_any_message_gives_exactly_one_output_that_json_can_carry(message: Any):
    ((tag, row),) = extract(message)
    assert set(row) <= (DEAD_LETTER_COLUMNS if tag == DEAD_LETTERS else SIGNIN_COLUMNS)
    json.dumps(row, ensure_ascii=False).encode("utf-8")
    if tag == DEAD_LETTERS:
        assert row["reason"] != "internal_error"
        data = message if isinstance(message, bytes) else message.data
        assert base64.b64decode(row["payload"]) == data


@pytest.mark.parametrize(
    "element",
    [
        None,
        "text",
        7,
        BeamMessage("text", {}),
        BeamMessage(GOOD, {"event_id": 5}),
        BeamMessage(GOOD, {1: b"x"}, publish_time="yesterday"),
        BeamMessage(b"{", 5),
    ],
    ids=repr,
)
def test_what_is_no_message_becomes_a_dead_letter_too(element: Any):
    ((tag, row),) = extract(element)
    assert tag == DEAD_LETTERS
    assert (row["stage"], row["reason"]) == ("validate", "internal_error")
    data = getattr(element, "data", b"")
    assert base64.b64decode(row["payload"]) == (data.encode() if isinstance(data, str) else data)


def test_the_message_gives_its_publish_time_and_its_event_id_to_the_row():
    expected = {**ROW, "event_id": "id-1", "published_at": "2024-01-02T03:04:05.678901Z"}
    raw = raw_message(attributes={"event_id": "id-1"})
    wrapped = BeamMessage._from_proto_str(raw.SerializeToString())
    assert extract(raw, wrapped) == [("rows", expected)] * 2


def test_the_body_s_own_event_id_goes_before_the_attribute():
    body = GOOD[:-1] + b', "event_id": "own"}'
    ((_, row),) = extract(raw_message(body, attributes={"event_id": "other"}))
    assert row["event_id"] == "own"


def test_an_attribute_that_is_no_valid_event_id_is_left_alone():
    assert "event_id" not in extract(raw_message(attributes={"event_id": "no id"}))[0][1]


def test_messages_of_different_times_in_one_bundle_keep_their_own():
    early, late = raw_message(), raw_message()
    late.publish_time.seconds += 1
    rows = [row for _, row in extract(early, late, early)]
    assert [row["published_at"][17:19] for row in rows] == ["05", "06", "05"]


def test_a_dead_letter_tells_all_about_its_message():
    message = raw_message(b"\xff", attributes={"event_id": "id-1", "k": "v"})
    ((tag, row),) = extract(message, pipeline_version="1.2", job_id="job-9")
    assert datetime.fromisoformat(row.pop("failed_at")) <= datetime.now(UTC)
    assert {(a["key"], a["value"]) for a in row.pop("attributes")} == {("event_id", "id-1"), ("k", "v")}
    assert (tag, row) == (
        DEAD_LETTERS,
        {
            "stage": "decode",
            "reason": "invalid_utf8",
            "detail": "byte 0 is not UTF-8",
            "payload": base64.b64encode(b"\xff").decode(),
            "message_id": "7",
            "publish_time": "2024-01-02T03:04:05.678901Z",
            "event_id": "id-1",
            "pipeline_version": "1.2",
            "job_id": "job-9",
        },
    )


def test_a_pipeline_counts_what_it_parsed_and_what_it_refused():
    elements = [sample.body for sample in SAMPLES] * 3
    reasons = Counter(sample.error for sample in SAMPLES if sample.error)
    refused = sum(reasons.values())
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        outputs = (
            pipeline
            | beam.Create(elements)
            | beam.ParDo(MessageExtractingFn()).with_outputs(DEAD_LETTERS, main="rows")
        )
        assert_that(
            outputs.rows | "rows" >> beam.combiners.Count.Globally(),
            equal_to([3 * (len(SAMPLES) - refused)]),
            "rows",
        )
        assert_that(
            outputs[DEAD_LETTERS] | "letters" >> beam.combiners.Count.Globally(),
            equal_to([3 * refused]),
            "dead letters",
        )
    counters = Counter()
    for counter in pipeline.result.metrics().query()["counters"]:
        assert counter.key.metric.namespace == "signin"
        counters[counter.key.metric.name] += counter.committed
    assert counters == {
        "signins_parsed": 3 * (len(SAMPLES) - refused),
        "dead_letters": 3 * refused,
        **{f"dead_letters_{reason}": 3 * count for reason, count in reasons.items()},
    }


def test_the_step_pickles():
    fn = pickle.loads(pickle.dumps(MessageExtractingFn(pipeline_version="1", job_id="j")))
    assert fn._extractor._pipeline_version == "1"
