"""The contract of a sign-in, message by message and as laws."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.signin_samples import Sample, load_samples
from transforms import signin_event, timestamps
from transforms.signin_event import REASONS, EventError, SigninEvent, decode, encode, message_attributes

SAMPLES = load_samples()
GOOD = b'{"userid":"u1","date":"2024-01-02T03:04:05.000000Z"}'

userids = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=128)
dates = st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30))  # noqa: DTZ001
event_ids = st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True)
attribute_maps = st.dictionaries(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=64),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=80),
    max_size=8,
)
events = st.builds(
    SigninEvent,
    userid=userids,
    date=dates.map(timestamps.from_datetime),
    event_id=st.none() | event_ids,
    attributes=attribute_maps,
)
# JSON that is nearly a sign-in, so that both ways of decoding are walked.
fields = st.sampled_from(['"userid"', '"date"', '"event_id"', '"attributes"', '"x"', '"\\u0075serid"'])
values = st.one_of(
    st.sampled_from(
        [
            '"u1"',
            '"2024-01-02T03:04:05Z"',
            '"2024-01-02T03:04:05.000000Z"',
            "null",
            "5",
            "1e999",
            '"\\ud800"',
            '"\\ud800\\u0041"',
            '"\\udc00"',
            '"\\u0000"',
            "{}",
            '{"a":"b"}',
            '{"a":5,"a":"b"}',
            '{"a":1e999}',
            "[[]]",
            "NaN",
            '"\\x"',
            "01",
            '"',
        ]
    ),
    st.text(max_size=8).map(json.dumps),
)
nearly = st.lists(st.tuples(fields, values), max_size=7).map(
    lambda pairs: "{" + ",".join(f"{field}:{value}" for field, value in pairs) + "}"
)
bodies = st.one_of(
    st.binary(max_size=64),
    nearly.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.tuples(nearly, st.binary(max_size=3), st.integers(0, 80)).map(
        lambda t: t[0].encode()[: t[2]] + t[1] + t[0].encode()[t[2] :]
    ),
)


def outcome(body: bytes, **options) -> SigninEvent | tuple[str, str | None]:
    try:
        return decode(body, **options)
    except EventError as error:
        return error.code, error.field


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_each_sample_becomes_what_the_file_says(sample: Sample):
    assert outcome(sample.body) == sample.outcome
    assert outcome(sample.body, unknown_fields="refuse") == sample.strict_outcome


def test_the_samples_are_many_and_show_every_reason():
    assert len(SAMPLES) >= 150
    assert len({sample.name for sample in SAMPLES}) == len(SAMPLES)
    shown = {
        result[0]
        for sample in SAMPLES
        for result in (sample.outcome, sample.strict_outcome)
        if not isinstance(result, SigninEvent)
    }
    assert shown | {"date_in_future"} == set(REASONS)


@given(events)
@settings(deadline=None)
def test_decoding_what_was_encoded_gives_the_same_event(event: SigninEvent):
    assert decode(encode(event), unknown_fields="refuse") == event


@given(events)
@settings(deadline=None)
def test_the_canonical_form_is_a_fixed_point_of_both_ways_of_decoding(event: SigninEvent):
    body = encode(event)
    for decoded in (decode(body), signin_event._decode_by_field(body, "refuse")):
        assert encode(decoded) == body


def agree(body: bytes) -> None:
    for unknown_fields in ("ignore", "refuse"):
        quick = signin_event.decode_quickly(body, signin_event._DECODERS[unknown_fields])
        try:
            slow = signin_event._decode_by_field(body, unknown_fields)
        except EventError as error:
            code, slow = error.code, None
        else:
            code = None
        assert (code in REASONS) == (slow is None)
        assert quick is None or quick == slow


@given(bodies)
@settings(max_examples=2000, deadline=None)
@example(b'{"userid":"u","date":"2024-01-02T03:04:05Z","x":"\xff"}')
@example(b'{"userid":"u","date":"2024-01-02T03:04:05Z","x":1e999}')
def test_the_quick_and_the_slow_way_agree_on_any_bytes(body: bytes):
    agree(body)


@given(st.lists(st.tuples(fields, values), max_size=3), st.integers(0, 5))
@settings(max_examples=500, deadline=None)
def test_the_two_ways_agree_on_a_good_event_with_anything_added(pairs: list[tuple[str, str]], at: int):
    members = ['"userid":"u1"', '"date":"2024-01-02T03:04:05.5+01:00"']
    members[min(at, 2) : min(at, 2)] = [f"{field}:{value}" for field, value in pairs]
    agree(("{" + ",".join(members) + "}").encode("utf-8", "surrogatepass"))


def test_a_deep_stack_changes_nothing():
    body = b'{"userid":"u1","date":"2024-01-02T03:04:05Z","x":' + b"[" * 60 + b"]" * 60 + b"}"

    def dive(levels: int) -> SigninEvent | tuple[str, str | None]:
        return outcome(body) if levels == 0 else dive(levels - 1)

    assert dive(0) == dive(400) == SigninEvent("u1", "2024-01-02T03:04:05.000000Z")


@pytest.mark.parametrize(
    "body",
    [
        b'"' + b'\\"' * 500_000,
        b'{"' + b'\\"' * 500_000 + b"\\",
        b'{"' + b"\\" * 1_000_001,
        b'"' * 1_000_001,
        b'["' + b"a" * 1_000_000,
        b'{"a":' * 200_000,
    ],
    ids=lambda body: body[:4].decode(),
)
def test_a_bad_body_costs_time_in_proportion_to_its_length(body: bytes):
    begun = time.process_time()
    assert outcome(body) in {("invalid_json", None), ("not_an_object", None)}
    assert time.process_time() - begun < 5  # a second look at each quote would take hours


def test_a_date_further_ahead_than_allowed_is_refused():
    latest = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert decode(GOOD, latest=latest).userid == "u1"
    assert outcome(GOOD, latest=latest - timedelta(microseconds=1)) == ("date_in_future", "date")


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.error], ids=lambda sample: sample.name)
def test_an_error_tells_no_value_of_the_message(sample: Sample):
    with pytest.raises(EventError) as caught:
        decode(sample.body.replace(b"2024-01-02", b"2024-01-0Q"))
    assert "2024" not in str(caught.value)
    assert len(caught.value.detail) < 200


def test_an_error_never_repeats_a_secret_in_a_field():
    bodies = [
        b'{"userid":"secret\\u0000","date":"x"}',
        b'{"userid":"u","date":"secret"}',
        b'{"userid":"u","date":"2024-01-02T03:04:05Z","event_id":"secret!"}',
        b'{"userid":"u","date":"2024-01-02T03:04:05Z","attributes":{"secret":5}}',
        b'{"userid":"u","date":"2024-01-02T03:04:05Z","this is a secret":5}',
        b'{"userid":"secret',
    ]
    for body in bodies:
        with pytest.raises(EventError) as caught:
            decode(body, unknown_fields="refuse")
        assert "secret" not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"


def test_33_attributes_are_one_too_many_and_repeated_keys_count_once():
    head = b'{"userid":"u1","date":"2024-01-02T03:04:05Z","attributes":'
    many = {f"k{number}": "v" for number in range(33)}
    assert outcome(head + json.dumps(many).encode() + b"}") == ("attributes_invalid", "attributes")
    many.popitem()
    assert len(decode(head + json.dumps(many).encode() + b"}").attributes) == 32
    repeated = ",".join(['"k":"v"'] * 40)
    assert decode(head + f"{{{repeated}}}}}".encode()).attributes == {"k": "v"}


def test_the_canonical_form_has_a_fixed_order_and_leaves_out_what_is_absent():
    event = SigninEvent("u", "2024-01-02T03:04:05.000000Z", "id", {"b": "2", "a": "é"})
    expected = (
        '{"userid":"u","date":"2024-01-02T03:04:05.000000Z","event_id":"id","attributes":{"a":"é","b":"2"}}'
    )
    assert encode(event) == expected.encode()
    assert encode(SigninEvent("u", "d")) == b'{"userid":"u","date":"d"}'


def test_the_message_attributes_are_those_that_the_job_reads():
    event = SigninEvent("u", "2024-01-02T03:04:05.000000Z", "id-1")
    assert message_attributes(event, "00-aa-bb-01") == {
        "event_id": "id-1",
        "event_time": "2024-01-02T03:04:05.000000Z",
        "schema_version": "1",
        "traceparent": "00-aa-bb-01",
    }
    assert set(message_attributes(SigninEvent("u", "d"))) == {"event_time", "schema_version"}


@given(dates, st.integers(-1439, 1439), st.integers(0, 9), st.sampled_from("Tt "))
@settings(deadline=None)
def test_any_offset_and_fraction_names_the_same_moment(
    moment: datetime, minutes: int, digits: int, mark: str
):
    fraction = f"{moment.microsecond:06}000"[:digits]
    sign = "-" if minutes < 0 else "+"
    offset = f"{sign}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"
    time = moment.strftime("%H:%M:%S") + (f".{fraction}" if fraction else "")
    text = f"{moment.date().isoformat()}{mark}{time}{offset}"
    kept = moment.replace(microsecond=int(f"{fraction:0<6}"[:6]))
    assert timestamps.canonical(text) == timestamps.from_datetime(kept - timedelta(minutes=minutes))
