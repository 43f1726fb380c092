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


class _Error(msgspec.Struct):
    code: str = "failed"


class _Result(msgspec.Struct):
    index: int
    status: str
    error: _Error | None = None


class _Answer(msgspec.Struct):
    """What is read of an answer: a problem's code, the results of a batch."""

    code: str = "no problem document"
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
        lines.append(f"Content-Length: {len(self._body(0, batch))}")
        self._head = ("\r\n".join(lines) + "\r\n\r\n").encode()

    def request(self, number: int) -> bytes:
        """The bytes of the request `number`; all have the same length."""
        first = number * self.batch
        missing = first + self.batch - len(self.fates)
        if missing > 0:
            self.fates.extend(bytes(missing))
        return self._head + self._body(first, self.batch)

    def _body(self, first: int, count: int) -> bytes:
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode()
        events = [self._event % (number % USERS, date, number) for number in range(first, first + count)]
        return events[0] if self.batch == 1 else b"[" + b",".join(events) + b"]"

    def taken(self, number: int, status: int, body: bytes, counts: bool) -> None:
        """Notes the answer to the request `number`; the status 0 is none."""
        first = number * self.batch
        if status in (200, 202) and b'"failed"' not in body and b'"spooled"' not in body:
            fates = bytes((PUBLISHED,)) * self.batch  # nearly always, and needs no decoding
            codes = Counter({"published": self.batch})
        elif status == 0:
            fates, codes = bytes(self.batch), Counter({"no answer": self.batch})
        else:
            fates, codes = self._told(status, body)
        self.fates[first : first + self.batch] = fates
        if counts:
            for code, count in codes.items():
                key = (status, code)
                if key not in self.answers and len(self.answers) >= _MOST_CODES:
                    key = (status, "other")
                self.answers[key] += count

    def _told(self, status: int, body: bytes) -> tuple[bytes, Counter[str]]:
        """The fates of a request's events, and how many of them there are by code."""
        is_good = 200 <= status < 300
        try:
            answer = _decode(body)
        except msgspec.MsgspecError:
            answer = _Answer()
        if self.batch == 1 or not answer.results:
            code = answer.code if not is_good else "spooled" if b'"spooled"' in body else "published"
            fate = _BY_STATUS.get(code, REFUSED) if is_good else REFUSED
            return bytes((fate,)) * self.batch, Counter({code[:64]: self.batch})
        fates, codes = bytearray((REFUSED,)) * self.batch, Counter[str]()
        for result in answer.results:
            if 0 <= result.index < self.batch:
                fates[result.index] = _BY_STATUS.get(result.status, REFUSED)
            codes[result.error.code[:64] if result.error else result.status] += 1
        return bytes(fates), codes

    def accepted(self) -> Iterator[int]:
        """The numbers of the events that were answered with 2xx."""
        return (number for number, fate in enumerate(self.fates) if fate in (PUBLISHED, SPOOLED))

    def id_of(self, number: int) -> str:
        return f"{self.run}-{number:0{_DIGITS}d}"

    def number_of(self, event_id: str) -> int | None:
        """The number of an event of this run; None where the id is none of its."""
        prefix, _, digits = event_id.rpartition("-")
        return int(digits) if prefix == self.run and digits.isdecimal() and len(digits) == _DIGITS else None
