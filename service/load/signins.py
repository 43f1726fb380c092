"""Requests that carry sign-ins of one run, and what became of each of these.

The event ids of a run are `<run>-<number>`, so that its rows can be found, and counted, afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import msgspec

SINGLE_PATH = "/events/signin"
BATCH_PATH = "/events/signin/batch"
USERS = 1000
_DIGITS = 9
_MOST_CODES = 50  # what a server calls its errors is its own matter
UNKNOWN, PUBLISHED, SPOOLED, REFUSED = range(4)
_BY_STATUS = {"published": PUBLISHED, "spooled": SPOOLED}
_TAKEN = (202, 207)  # of a batch 207 too, where some of its events were taken
NOT_OURS = "no sign-in answer"  # of 2xx and 3xx: a login page, another service, somebody else's event
NO_PROBLEM = "no problem document"


class _Error(msgspec.Struct):
    code: str = "failed"


class _Result(msgspec.Struct):
    index: int
    status: str
    event_id: str | None = None
    error: _Error | None = None


class _Answer(msgspec.Struct):
    """What is read of an answer: where the event is, a problem's code, the results of a batch."""

    event_id: str | None = None
    status: str | int = ""  # a problem's is a number
    code: str = NO_PROBLEM
    results: list[_Result] = []


_decode = msgspec.json.Decoder(_Answer).decode


class Signins:
    """The sign-ins of one run, `batch` of them in a request (1: each alone)."""

    def __init__(self, run: str, batch: int, host: str, headers: Mapping[str, str]) -> None:
        self.run = run
        self.batch = batch
        self.fates = bytearray()  # by the number of the event; UNKNOWN where there was no answer
        self.answers: Counter[tuple[int, str]] = Counter()  # events by status and code, those that count
        path = SINGLE_PATH if batch == 1 else BATCH_PATH
        fields = {"Host": host, "User-Agent": "signin-loadtest", "Content-Type": "application/json"}
        fields |= headers
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        self._event = b'{"userid":"user-%%04d","date":"%%s","event_id":"%s-%%0%dd"}' % (
            run.encode(),
            _DIGITS,
        )
        self._published = b'{"event_id":"%s-%%0%dd","status":"published"' % (run.encode(), _DIGITS)
        self._lines = "\r\n".join(lines)
        self._head = self._head_for(batch)
        self._short, self._short_count = -1, batch

    def shorten(self, number: int, count: int) -> None:
        """Lets the request `number`, the last one, carry only `count` events."""
        self._short, self._short_count = number, count

    def request(self, number: int) -> bytes:
        """The bytes of the request `number`; all but a shortened one have the same length."""
        first, count = number * self.batch, self._count(number)
        missing = first + count - len(self.fates)
        if missing > 0:
            self.fates.extend(bytes(missing))
        head = self._head if count == self.batch else self._head_for(count)
        return head + self._body(first, count)

    def _count(self, number: int) -> int:
        return self._short_count if number == self._short else self.batch

    def _head_for(self, count: int) -> bytes:
        return f"{self._lines}\r\nContent-Length: {len(self._body(0, count))}\r\n\r\n".encode()

    def _body(self, first: int, count: int) -> bytes:
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode()
        events = [self._event % (number % USERS, date, number) for number in range(first, first + count)]
        return events[0] if self.batch == 1 else b"[" + b",".join(events) + b"]"

    def taken(self, number: int, status: int, body: bytes, counts: bool) -> None:
        """Notes the answer to the request `number`; the status 0 is none."""
        first, count = number * self.batch, self._count(number)
        if status == 202 and self._all_published(first, count, body):
            fates = bytes((PUBLISHED,)) * count  # nearly always, and needs no decoding
            codes = Counter({"published": count})
        elif status == 0:
            fates, codes = bytes(count), Counter({"no answer": count})
        else:
            fates, codes = self._told(status, body, first, count)
        self.fates[first : first + count] = fates
        if counts:
            for code, events in codes.items():
                key = (status, code)
                if key not in self.answers and len(self.answers) >= _MOST_CODES:
                    key = (status, "other")
                self.answers[key] += events

    def _all_published(self, first: int, count: int, body: bytes) -> bool:
        """Whether the body is, byte by byte, what our service says where all is in the topic.

        False says nothing: the same JSON may be written in another way.
        """
        if self.batch == 1:
            return body.startswith(self._published % first)
        return (
            body.startswith(b'{"results":[{"index":0,"event_id":"%s"' % self.id_of(first).encode())
            and body.count(b'"status":"published"') == body.count(b'{"index":') == count
        )

    def _told(self, status: int, body: bytes, first: int, count: int) -> tuple[bytes, Counter[str]]:
        """The fates of a request's `count` events, and how many of them there are by code."""
        try:
            answer = _decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError):  # the second of a string that is no UTF-8
            answer = _Answer()
        code = answer.code if status >= 400 else NOT_OURS
        fates, codes = bytearray((REFUSED,)) * count, [code] * count
        if self.batch == 1:
            if status == 202 and answer.event_id == self.id_of(first) and answer.status in _BY_STATUS:
                codes[0] = str(answer.status)
                fates[0] = _BY_STATUS[codes[0]]
        else:
            for result in answer.results:  # a problem has them too, where nothing was taken
                if 0 <= result.index < count:
                    codes[result.index] = result.error.code if result.error else NOT_OURS
                    if self._says_taken(status, result, first):
                        codes[result.index] = result.status
                        fates[result.index] = _BY_STATUS[result.status]
        for index, fate in enumerate(fates):
            if fate == REFUSED and codes[index] in _BY_STATUS:
                codes[index] = NOT_OURS  # an error of this name must not look like an event that was taken
        return bytes(fates), Counter(code[:64] for code in codes)

    def _says_taken(self, status: int, result: _Result, first: int) -> bool:
        is_its_own = result.event_id == self.id_of(first + result.index)
        return status in _TAKEN and is_its_own and result.status in _BY_STATUS

    def accepted(self) -> Iterator[int]:
        """The numbers of the events of which the service said that they are safe."""
        return (number for number, fate in enumerate(self.fates) if fate in (PUBLISHED, SPOOLED))

    def id_of(self, number: int) -> str:
        return f"{self.run}-{number:0{_DIGITS}d}"

    def number_of(self, event_id: str) -> int | None:
        """The number of an event of this run; None where the id is none of its."""
        prefix, _, digits = event_id.rpartition("-")
        return int(digits) if prefix == self.run and digits.isdecimal() and len(digits) == _DIGITS else None
