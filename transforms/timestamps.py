"""RFC 3339 times and the one form that this project writes them in: `YYYY-MM-DDTHH:MM:SS.ffffffZ`."""

from __future__ import annotations

import re
from collections import deque
from datetime import UTC, datetime

_fromisoformat = datetime.fromisoformat
_RFC3339 = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]((?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9])"
    r"(?:\.([0-9]{1,9}))?([Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])?"
)


def canonical(text: str) -> str:
    """An RFC 3339 time in UTC; one without an offset is UTC already.

    Digits beyond the microsecond are cut off. A leap second is refused: BigQuery has no place for it.
    Raises ValueError with words that do not repeat the text.
    """
    quick = text + "Z" if len(text) == 26 else text
    # Of all that `fromisoformat` takes, only the canonical form has these characters at these places. It
    # knows the calendar as well, and is three times as fast as the expression.
    if len(quick) == 27 and quick[26] == "Z" and quick[19] == "." and quick[10] == "T" and quick[5] != "W":
        try:
            _fromisoformat(quick)
        except ValueError:
            pass  # the slow way finds the words for it
        else:
            return quick
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"not an RFC 3339 time, but {len(text)} other characters")
    day, time, fraction, offset = match.groups()
    if offset is None or offset in "Zz":
        offset = "+00:00"
    moment = _moment(f"{day}T{time}.{(fraction or '')[:6]:0<6}{offset}")
    try:
        return from_datetime(moment)
    except OverflowError:
        raise ValueError("in UTC not between the years 0001 and 9999") from None


def canonical_together(texts: list[str]) -> list[str] | None:
    """What `canonical` gives for each; None where not all are times in the form that is nearly canonical."""
    lengths = set(map(len, texts))
    if lengths == {26}:
        texts = [text + "Z" for text in texts]
    elif lengths != {27}:
        return None
    # As in `canonical`: the same characters at the same places, and the calendar.
    joined = "".join(texts)
    count = len(texts)
    if (
        joined[26::27] != "Z" * count
        or joined[19::27] != "." * count
        or joined[10::27] != "T" * count
        or "W" in joined[5::27]
    ):
        return None
    try:
        deque(map(_fromisoformat, texts), maxlen=0)
    except ValueError:
        return None
    return texts


def from_datetime(moment: datetime) -> str:
    """The canonical text; a moment without a zone is UTC already. Raises OverflowError at the years' ends."""
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return f"{moment.isoformat(timespec='microseconds')[:26]}Z"


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("not a day of the calendar between the years 0001 and 9999") from None
