"""What was seen of each request, and the figures that are made of it."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import dataclass, field

NO_ANSWER = 0  # in the place of a status


@dataclass
class Samples:
    """One entry for each request: when it was over (monotonic s), after how long (s), its HTTP status.

    One without an answer took infinitely long: a percentile must not become better by what was lost.
    """

    began: float = 0.0
    ended: float = 0.0
    at: array[float] = field(default_factory=lambda: array("d"))
    took: array[float] = field(default_factory=lambda: array("d"))
    status: array[int] = field(default_factory=lambda: array("H"))

    def add(self, at: float, took: float, status: int) -> None:
        self.at.append(at)
        self.took.append(took if status else math.inf)
        self.status.append(status)

    def __len__(self) -> int:
        return len(self.at)

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    def between(self, first: float, last: float) -> Samples:
        """The requests that were over between two moments."""
        chosen = [index for index, when in enumerate(self.at) if first <= when < last]
        return Samples(
            max(first, self.began),
            min(last, self.ended),
            array("d", (self.at[index] for index in chosen)),
            array("d", (self.took[index] for index in chosen)),
            array("H", (self.status[index] for index in chosen)),
        )

    def good(self) -> int:
        return sum(200 <= status < 300 for status in self.status)

    def rate(self) -> float:
        """Answers with 2xx a second, those that came after the end not counted."""
        pairs = zip(self.at, self.status, strict=True)
        good = sum(200 <= status < 300 and at <= self.ended for at, status in pairs)
        return good / self.seconds if self.seconds > 0 else 0.0

    def statuses(self) -> dict[str, int]:
        return {str(status): count for status, count in Counter(self.status).items()}

    def percentile_ms(self, percent: float) -> float:
        """Latency of all requests; infinite where too many had no answer, NaN where there were none."""
        return percentile(sorted(self.took), percent) * 1000

    def longest_ms(self) -> float:
        """The longest time that an answer took; NaN where none came."""
        return max((each for each in self.took if each < math.inf), default=math.nan) * 1000


def percentile(ordered: list[float], percent: float) -> float:
    """The smallest value that `percent` of the ordered values do not exceed; NaN where there is none."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
