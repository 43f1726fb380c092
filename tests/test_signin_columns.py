"""Messages decoded together are what each is alone, however they are cut and whatever stands beside them."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.signin_samples import Sample, load_samples
from transforms.signin_columns import decode_together
from transforms.signin_event import EventError, SigninEvent, decode, encode

SAMPLES = load_samples()
GOOD = b'{"userid":"neighbour","date":"2024-01-02T03:04:05.000006Z"}'


def together(payloads: list[bytes]) -> tuple[list[SigninEvent | None], set[int]]:
    """The events of the messages, None for the doubtful ones, and the indexes of these."""
    userids, dates, event_ids, attributes, doubtful = decode_together(payloads)
    assert len(userids) == len(dates) == len(event_ids) == len(attributes) == len(payloads)
    events = [
        None if index in doubtful else SigninEvent(userid, date, event_id, dict(attributes or {}))
        for index, (userid, date, event_id, attributes) in enumerate(
            zip(userids, dates, event_ids, attributes, strict=True)
        )
    ]
    return events, doubtful


def assert_as_alone(payloads: list[bytes]) -> set[int]:
    events, doubtful = together(payloads)
    for payload, event in zip(payloads, events, strict=True):
        if event is not None:
            assert decode(payload) == event, payloads
    return doubtful


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_each_sample_among_others_is_what_it_is_alone(sample: Sample):
    (before, event, after), doubtful = together([GOOD, sample.body, GOOD])
    assert doubtful <= {1}
    assert before == after == decode(GOOD)
    if isinstance(sample.outcome, SigninEvent):
        assert event in (None, sample.outcome)
    else:
        assert event is None


@pytest.mark.parametrize(
    "body",
    [
        GOOD,
        b'{"userid": "93234234", "date": "2017-10-17T20:57:17.338320"}',
        encode(SigninEvent("u", "2024-02-29T00:00:00.000000Z", "id-1", {"ip": "192.0.2.1", "é": "😀"})),
        b'{"userid":"u\\u0301 \\u200b","date":"2024-01-02 03:04:05+01:00","event_id":null,"attributes":null}',
        b'{"userid":"u","date":"2024-01-02T03:04:05Z","colour":"\xc3\xa9","more":[{"a":[1,{}]}]}',
        b'\n {"userid":"u",\n\t"date":"2024-01-02T03:04:05Z"}\r\n',
        json.dumps({"userid": "u" * 128, "date": "2024-01-02T03:04:05Z"}, indent=2).encode(),
    ],
)
def test_good_messages_need_no_second_look(body: bytes):
    assert assert_as_alone([body] * 100) == set()
    assert assert_as_alone([GOOD, body] * 10) == set()


def test_a_wrong_message_makes_no_other_doubtful():
    payloads = [GOOD] * 300
    payloads[100] = b'{"userid":'
    payloads[200] = b""
    assert assert_as_alone(payloads) == {100, 200}
    payloads[100] = b'{"userid":"\\u0000","date":"2024-01-02T03:04:05Z"}'
    payloads[200] = b'{"userid":"u","date":"2024-02-30T03:04:05.000000Z"}'
    payloads[250] = b'{"userid":"u","date":"2024-01-02T03:04:05.000000Z","event_id":"a/b"}'
    assert assert_as_alone(payloads) == {100, 200, 250}


@pytest.mark.parametrize(
    "date",
    [
        *("2024-W01-1T03:04:05.123456Z", "2024-W01-1T03:04:05.123456", "2024-02-30T03:04:05.123456Z"),
        *("2023-02-29T03:04:05.123456", "2024-01-02 03:04:05.123456Z", "2024-01-02T03:04:05,123456Z"),
        *("2024-01-02T24:00:00.000000Z", "2024-01-02T03:04:60.000000Z", "2024-01-02T03:04:05.123456z"),
        *("0000-01-01T00:00:00.000000Z", "2024-01-02T03:04:05.12345+0", "2024-01-02T03:04:05.1+01:00"),
        *("\u0662024-01-02T03:04:05.123456", "2024-01-02T03:04+01:00.1234", "20240102T03:04:05.123+01:00"),
    ],
)
def test_what_is_as_long_as_a_date_is_not_taken_for_one(date: str):
    body = json.dumps({"userid": "u", "date": date}).encode()
    assert_as_alone([body] * 3)
    assert_as_alone([GOOD, body])


def test_nothing_together_is_nothing():
    assert together([]) == ([], set())


@pytest.mark.parametrize(
    "payloads",
    [
        [b'{"userid":"a"', b',"date":"2024-01-02T03:04:05Z"}', GOOD + GOOD],
        [GOOD + b" " + GOOD, b""],
        [GOOD[:-1], b"}" + GOOD],
        [b'{"userid":"}', b'{","date":"2024-01-02T03:04:05Z"}', GOOD + GOOD],
        [b'{"x":{}', b'{},"userid":"a","date":"2024-01-02T03:04:05Z"}', GOOD + GOOD],
        [b'{"userid":"a","date":"2024-01-02T03:04:05Z","x":{', GOOD[1:] + b"}", GOOD + b"\n" + GOOD],
        [b'{"x":[' + GOOD, GOOD + b"]}", GOOD + GOOD],
    ],
)
def test_messages_cannot_make_up_for_each_other(payloads: list[bytes]):
    assert_as_alone(payloads)
    assert_as_alone([GOOD, *payloads, GOOD])


pieces = st.sampled_from([*b'{}[]\n\r\t ",:\\x\x00\xc3\xff']).map(lambda byte: bytes([byte]))
bodies = st.one_of(
    st.just(GOOD),
    st.sampled_from([sample.body for sample in SAMPLES if len(sample.body) < 1000]),
    st.binary(max_size=40),
    st.lists(pieces, max_size=12).map(b"".join),
)


@given(st.lists(bodies, max_size=40))
@settings(max_examples=500, deadline=None)
def test_any_messages_together_are_what_each_is_alone(payloads: list[bytes]):
    assert_as_alone(payloads)


@given(st.lists(bodies, min_size=1, max_size=6), st.sampled_from([b"\n", b"", b" ", b"\n\n"]), st.data())
@settings(max_examples=500, deadline=None)
def test_a_stream_of_messages_may_be_cut_anywhere(parts: list[bytes], between: bytes, data: st.DataObject):
    stream = between.join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    edges = [0, *cuts, len(stream)]
    assert_as_alone([stream[start:stop] for start, stop in itertools.pairwise(edges)])


@given(
    st.text(max_size=140), st.text(max_size=140), st.dictionaries(st.text(max_size=70), st.text(max_size=9))
)
@settings(max_examples=500, deadline=None)
def test_limits_are_those_of_the_contract(userid: str, event_id: str, attributes: dict[str, str]):
    document = {
        "userid": userid,
        "date": "2024-01-02T03:04:05Z",
        "event_id": event_id,
        "attributes": attributes,
    }
    for names in (("userid",), ("userid", "event_id"), ("userid", "attributes")):
        body = json.dumps({name: document[name] for name in ("date", *names)}).encode()
        doubtful = assert_as_alone([GOOD, body])
        try:
            decode(body)
        except EventError:
            assert 1 in doubtful
        else:
            assert doubtful == set()
