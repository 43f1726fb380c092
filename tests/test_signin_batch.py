"""An event in a batch means what it means alone, and a batch is bounded before it takes memory."""

from __future__ import annotations

import contextlib
import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.signin_samples import load_samples
from transforms import signin_batch, signin_event
from transforms.signin_batch import BatchSignin, TooManyError
from transforms.signin_event import EventError, SigninEvent

LATEST = datetime(2100, 1, 1, tzinfo=UTC)
GOOD = b'{"userid": "1", "date": "2017-10-17T20:57:17Z"}'
SAMPLES = load_samples()


def alone(body):
    try:
        return signin_event.decode(body, unknown_fields="refuse", latest=LATEST)
    except EventError as error:
        return (error.code, error.field)


def comparable(found):
    if isinstance(found, EventError):
        return (found.code, found.field)
    return SigninEvent(found.userid, found.date, found.event_id, found.attributes or {})


def is_json(body):
    try:
        json.loads(body.decode())
    except (ValueError, RecursionError):
        return False
    return alone(body)[0] != "invalid_json" if isinstance(alone(body), tuple) else True


@pytest.mark.parametrize("sample", [s for s in SAMPLES if is_json(s.body)], ids=lambda sample: sample.name)
@pytest.mark.parametrize("neighbour", [GOOD, b"17"], ids=["beside a good one", "beside a bad one"])
def test_a_sample_in_an_array_is_what_it_is_alone(sample, neighbour):
    found = signin_batch.decode_array(b"[%s,\n%s ]" % (neighbour, sample.body), 1000, LATEST)
    assert comparable(found[1]) == alone(sample.body)


def fits_a_line(body):
    return b"\n" not in body and len(body) < signin_batch.MOST_MARKS_OF_AN_EVENT * 1000


@pytest.mark.parametrize(
    "sample", [s for s in SAMPLES if fits_a_line(s.body)], ids=lambda sample: sample.name
)
@pytest.mark.parametrize("neighbour", [GOOD, b"17"], ids=["beside a good one", "beside a bad one"])
def test_a_sample_on_a_line_is_what_it_is_alone(sample, neighbour):
    found = signin_batch.decode_lines(neighbour + b"\n" + sample.body + b"\r\n" + GOOD, 1000, LATEST)
    assert comparable(found[1]) == alone(sample.body + b"\r")
    assert isinstance(found[2], BatchSignin)


def signins():
    text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=5)
    return st.fixed_dictionaries(
        {"userid": text, "date": st.datetimes().map(lambda moment: moment.isoformat() + "Z")},
        optional={
            "event_id": st.from_regex(r"[A-Za-z0-9._:-]{1,8}", fullmatch=True),
            "attributes": st.dictionaries(text, text, max_size=3),
        },
    )


@given(st.lists(signins(), min_size=1, max_size=4))
def test_what_is_encoded_from_a_batch_is_byte_for_byte_the_canonical_form(events):
    bodies = [json.dumps(event).encode() for event in events]
    found = signin_batch.decode_array(b"[" + b",".join(bodies) + b"]", 10, datetime(9999, 12, 31, tzinfo=UTC))
    assert [signin_batch.encode(each) for each in found] == [
        signin_event.encode(signin_event.decode(body)) for body in bodies
    ]


def test_a_date_too_far_ahead_is_found_in_both_forms():
    date = (LATEST + timedelta(microseconds=1)).isoformat()
    body = json.dumps({"userid": "1", "date": date}).encode()
    for found in (
        signin_batch.decode_array(b"[" + body + b"]", 1, LATEST),
        signin_batch.decode_lines(body, 1, LATEST),
    ):
        assert comparable(found[0]) == ("date_in_future", "date")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "empty_body"),
        (b" \n", "empty_body"),
        (b"[" + GOOD, "invalid_json"),
        (b"[" + GOOD + b"] x", "invalid_json"),
        (b"[" + GOOD + b",]", "invalid_json"),
        (b"[" * 30_000, "invalid_json"),
        (b'["\xff"]', "invalid_utf8"),
        (b"\xef\xbb\xbf[]", "invalid_json"),
        (GOOD, "not_an_array"),
        (b'"text"', "not_an_array"),
    ],
)
def test_a_body_that_is_no_array_is_broken_as_a_whole(body, code):
    with pytest.raises(EventError) as caught:
        signin_batch.decode_array(body, 1000, LATEST)
    assert caught.value.code == code


def test_a_broken_line_breaks_no_other_and_an_empty_line_counts():
    found = signin_batch.decode_lines(b'\n{"userid": \n\xff\n' + GOOD + b"\n", 1000, LATEST)
    codes = [each.code if isinstance(each, EventError) else None for each in found]
    assert codes == ["empty_body", "invalid_json", "invalid_utf8", None]


PIECES = [
    GOOD,
    b'{"userid":"1",',
    b'"date":"2024-05-06"}',
    b'"',
    b"{",
    b"}",
    b"17",
    b" ",
    b"\r",
    b"\n",
    b"\n",
]


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map(b"".join))
@example(GOOD + GOOD + b"\n\n" + GOOD)
@example(b'{"userid":"1",\n"date":"2024-05-06"}\n' + GOOD + GOOD)
@example(b'{"userid":"}\n{","date":"2024-05-06"}')
@example(GOOD + b"\r\n" + GOOD + b"\r\n")
def test_a_line_is_what_it_is_alone_whatever_stands_on_the_others(body):
    lines = body.removesuffix(b"\n").split(b"\n")
    assume(any(line.strip() for line in lines))
    found = signin_batch.decode_lines(body, 100, LATEST)
    assert [comparable(each) for each in found] == [alone(line) for line in lines]


@pytest.mark.parametrize("decode", [signin_batch.decode_array, signin_batch.decode_lines])
def test_as_many_as_allowed_pass_and_one_more_does_not(decode):
    for count in (5, 6):
        lines = decode is signin_batch.decode_lines
        body = b"\n".join([GOOD] * count) if lines else b"[" + b",".join([GOOD] * count) + b"]"
        if count == 5:
            assert len(decode(body, 5, LATEST)) == 5
        else:
            with pytest.raises(TooManyError):
                decode(body, 5, LATEST)


def test_the_largest_valid_events_are_not_too_many():
    attributes = {f"{number}": "," * 1024 for number in range(32)}
    body = json.dumps([{"userid": "1", "date": "2017-10-17T20:57:17Z", "attributes": attributes}] * 20)
    assert all(isinstance(each, BatchSignin) for each in signin_batch.decode_array(body.encode(), 20, LATEST))


def test_an_event_larger_than_any_valid_one_is_refused_and_the_largest_valid_one_is_not():
    largest = {f"{number}": "\U0001f600" * 1024 for number in range(32)}
    for attributes, valid in ((largest, True), ({"a": "x" * 600_000}, False)):
        event = {"userid": "1", "date": "2017-10-17T20:57:17Z", "attributes": attributes}
        for neighbour in (GOOD, b"17"):
            found = signin_batch.decode_array(
                b"[%s, %s]" % (neighbour, json.dumps(event).encode()), 9, LATEST
            )
            assert isinstance(found[1], BatchSignin) == valid
            assert valid or found[1].code == "event_too_large"


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"[]," * 1_600_000,
        b"[" + b'"",' * 1_600_000,
        b"[" + b'{"a":1},' * 600_000,
        b"[" * 5_000_000,
        b'["\n' + b"[" * 5_000_000,
        b'["' + b'""' * 2_400_000 + b'"]',
        b'["' + b"\\\\,," * 1_200_000 + b'"]',
    ],
    ids=["arrays", "strings", "objects", "deep", "open string", "quotes", "escapes"],
)
@pytest.mark.parametrize("decode", [signin_batch.decode_array, signin_batch.decode_lines])
def test_five_hostile_megabytes_do_not_stop_the_process_for_long(decode, body):
    started = time.process_time()
    with contextlib.suppress(ValueError):
        assert not any(isinstance(each, BatchSignin) for each in decode(body, 1000, LATEST))
    assert time.process_time() - started < 1.5
