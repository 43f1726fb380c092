"""Messages of any kind, made from a seed, and the law that each of them must obey.

`python -m tests.soak.any_message` judges a million of them, the tests some thousands.
"""

from __future__ import annotations

import base64
import json
import random
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from apache_beam import pvalue
from apache_beam.io.gcp.pubsub import PubsubMessage as BeamMessage
from google.pubsub_v1 import types

from tests import column_rules
from tests.signin_samples import load_samples
from transforms.bigquery_rows import DEAD_LETTER_SCHEMA, SIGNIN_SCHEMA
from transforms.pubsub_message import DEAD_LETTERS, Extractor, MessageExtractingFn

RawMessage = types.PubsubMessage.pb()
# What is huge has its turn in the samples' own tests.
SEEDS = [sample.body for sample in load_samples() if len(sample.body) < 2000]
_TEXTS = (
    *("", "u1", "null", "\0", "\n", "é", "😀", "\u2028", "\ufeff", "a" * 128, "a" * 129, "x" * 1025),
    *("2024-01-02", "2024-01-02T03:04:05Z", "2024-02-30T03:04:05Z", "0001-01-01T00:00:00+00:01"),
    *("9999-12-31T23:59:59.9999999Z", "2016-12-31T23:59:60Z", "2024-01-02T03:04:05.123456789+05:45"),
    *("event-1", "a/b", "-1", "1e999"),
)
_NAMES = ("userid", "date", "event_id", "attributes", "Userid", "", "\ud800", "x")
_SCRAPS = (
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b",",
        b":",
        b"\\",
        b"\\u",
        b"\\ud800",
        b"\\u0000",
        b"\xff",
        b"\xed\xa0\x80",
    ),
    *(b"\0", b"\xef\xbb\xbf", b"null", b"true", b"1e999", b"NaN", b" ", b"\n", b"[" * 70),
    *(b'"userid"', b'"date"', b'"event_id":'),
)
_FIRST, _LAST = datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999)  # noqa: DTZ001 - Beam's may have none


def messages(seed: int, count: int) -> Iterator[Any]:
    """The messages of a seed: bytes, raw protobuf messages and Beam's own, the same each time."""
    chance = random.Random(seed)
    for _ in range(count):
        yield _wrapped(chance, _body(chance))


class Judge:
    """Puts messages through the step and checks the law; `tally` counts what they became."""

    def __init__(self) -> None:
        self.tally: Counter[str] = Counter()
        self._step = MessageExtractingFn(pipeline_version="1", job_id="job")
        self._step.start_bundle()

    def row_of(self, message: Any) -> dict[str, Any] | None:
        """The row that the message became, or None for a dead letter. Raises AssertionError.

        Exactly one of them: a row that BigQuery takes and that says what the message says, or a dead
        letter with the message's own bytes.
        """
        (output,) = self._step.process(message)  # whatever it raises, Beam would see
        data = message if isinstance(message, bytes) else bytes(message.data)
        if isinstance(output, pvalue.TaggedOutput):
            assert output.tag == DEAD_LETTERS
            letter = output.value
            assert not column_rules.complaints(letter, DEAD_LETTER_SCHEMA), (data, letter)
            assert base64.b64decode(letter["payload"]) == data
            assert letter["reason"] != "internal_error", (data, letter)
            self.tally[letter["reason"]] += 1
            return None
        row: dict[str, Any] = output
        assert not column_rules.complaints(row, SIGNIN_SCHEMA), (data, row)
        said = json.loads(data)
        assert row["userid"] == said["userid"]
        assert _moment(row["date"]) == _moment(said["date"]), (data, row)
        assert said.get("event_id") in (None, row.get("event_id"))
        attributes = {record["key"]: record["value"] for record in row.get("attributes", ())}
        assert attributes == (said.get("attributes") or {})
        self.tally["row"] += 1
        return row


def judge_together(messages: list[Any], chance: random.Random) -> None:
    """Checks that messages become the same together as each by itself. Raises AssertionError.

    As they are, then the good ones alone, then these with one of the others among them.
    """
    extractor = Extractor(pipeline_version="1", job_id="job")
    alone = [(message, extractor.extract(message)) for message in messages]
    good = [pair for pair in alone if "payload" not in pair[1]]
    bad = [pair for pair in alone if "payload" in pair[1]]
    mixed = list(good)
    if bad:
        mixed.insert(chance.randrange(len(good) + 1), chance.choice(bad))
    for pairs in (alone, good, mixed):
        elements = [message for message, _ in pairs]
        payloads = [each if isinstance(each, bytes) else bytes(each.data) for each in elements]
        rows, kept, letters = extractor.extract_all(elements, payloads)
        assert rows == [outcome for _, outcome in pairs if "payload" not in outcome], elements
        assert [id(each) for each in kept] == [id(m) for m, outcome in pairs if "payload" not in outcome]
        expected = [outcome for _, outcome in pairs if "payload" in outcome]
        assert [letter | {"failed_at": ""} for letter in letters] == [
            letter | {"failed_at": ""} for letter in expected
        ], elements


def _moment(text: str) -> datetime:
    """What RFC 3339 text means; Python itself reads at most six digits of a fraction and rounds none."""
    moment = datetime.fromisoformat(text.upper())
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _body(chance: random.Random) -> bytes:
    kind = chance.random()
    if kind < 0.15:
        return chance.randbytes(chance.randrange(60))
    if kind < 0.55:
        return _damaged(chance, chance.choice(SEEDS))
    text = json.dumps(_document(chance), ensure_ascii=chance.random() < 0.5)
    body = text.encode("utf-8", "surrogatepass")
    return _damaged(chance, body) if chance.random() < 0.2 else body


def _document(chance: random.Random) -> Any:
    if chance.random() < 0.03:
        return _value(chance, 3)
    document: dict[str, Any] = {"userid": _text(chance), "date": _date(chance)}
    for _ in range(chance.randrange(3)):
        document[chance.choice(_NAMES)] = _value(chance, 2)
    if chance.random() < 0.3:
        document["attributes"] = {_text(chance): _text(chance) for _ in range(chance.randrange(5))}
    return document


def _date(chance: random.Random) -> str:
    if chance.random() < 0.2:
        return chance.choice(_TEXTS)
    moment = _FIRST + timedelta(microseconds=chance.randrange(315_537_897_600_000_000))
    text = moment.isoformat(chance.choice("T t"), chance.choice(("seconds", "milliseconds", "microseconds")))
    return text + chance.choice(("", "Z", "z", "+00:00", "-00:00", "+05:45", "-23:59", "+24:00", " UTC"))


def _text(chance: random.Random) -> str:
    if chance.random() < 0.5:
        return chance.choice(_TEXTS)
    return "".join(
        chr(chance.choice((65, 0x20, 0xE9, 0x4E2D, 0x1F600, chance.randrange(0x110000)))) for _ in range(5)
    )


def _value(chance: random.Random, depth: int) -> Any:
    kind = chance.randrange(8 if depth else 6)
    simple = (None, True, chance.randrange(-(10**18), 10**18), chance.random() * 1e308, _text(chance), "")
    if kind < 6:
        return simple[kind]
    if kind == 6:
        return [_value(chance, depth - 1) for _ in range(chance.randrange(4))]
    return {_text(chance): _value(chance, depth - 1) for _ in range(chance.randrange(4))}


def _damaged(chance: random.Random, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(chance.randrange(4)):
        place = chance.randrange(len(changed) + 1)
        kind = chance.randrange(4)
        if kind == 0:
            changed[place : place + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del changed[place : place + chance.randrange(1, 9)]
        elif kind == 2:
            changed[place:place] = chance.choice(_SCRAPS)
        else:
            other = chance.choice(SEEDS)
            changed[place:] = other[chance.randrange(len(other) + 1) :]
    return bytes(changed)


def _wrapped(chance: random.Random, body: bytes) -> Any:
    kind = chance.randrange(3)
    if kind == 0:
        return body
    attributes = {_text(chance): _text(chance) for _ in range(chance.randrange(3))}
    for name in ("event_id", "replay_of", "original_event_id"):
        if chance.random() < 0.2:
            attributes[name] = _text(chance)
    if kind == 1:
        published = chance.choice((None, _FIRST, _LAST, datetime(2024, 1, 2, tzinfo=UTC)))
        return BeamMessage(body, chance.choice((None, attributes)), chance.choice((None, "7")), published)
    clean = {_clean(key): _clean(value) for key, value in attributes.items()}
    message = RawMessage(data=body, attributes=clean, message_id=chance.choice(("", "7")))
    if chance.random() < 0.5:
        message.publish_time.seconds = chance.choice(
            (0, 1704164645, -(2**63), 2**63 - 1, chance.getrandbits(40))
        )
        message.publish_time.nanos = chance.choice((0, 999_999_999, -1, 2**31 - 1))
    return message


def _clean(text: str) -> str:
    """Text that protobuf can hold."""
    return text.encode("utf-8", "replace").decode()
