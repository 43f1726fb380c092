"""Why a job failed, found among its messages: the message that names the fault, not the last one."""

from __future__ import annotations

import re
from collections.abc import Iterable

from service.dataflow.failures import DETAIL_CHARACTERS
from service.dataflow.sightings import SeenMessage

# What Dataflow says around a cause, and never is one: these frames come last and in every failure.
_FRAMES = re.compile(
    r"work item was attempted|worker lost contact"
    r"|Workflow failed\.?\s*$|Traceback \(most recent call last\):\s*$",
    re.IGNORECASE,
)
_TRACEBACK = re.compile(r"Traceback \(most recent call last\)|^\s+at [\w.$]+\(|Caused by:", re.MULTILINE)
_EXCEPTION = re.compile(r"\b[\w.]*(?:Error|Exception|Errno)\b|^(?:[a-z_]\w*\.)+[A-Z]\w+:", re.MULTILINE)


def cause_of(messages: Iterable[SeenMessage]) -> str | None:
    """The text that best says why, at most DETAIL_CHARACTERS from its end; None where none says anything.

    A traceback beats the name of an exception, that beats any other error, and what Dataflow says
    around every failure comes last; among equals the newest counts.
    """
    texts = [message.text for message in messages if message.importance == "ERROR" and message.text.strip()]
    best = max(enumerate(texts), key=lambda item: (_weight(item[1]), item[0]), default=None)
    return best[1][-DETAIL_CHARACTERS:] if best else None


def _weight(text: str) -> int:
    if _FRAMES.search(text) and not _EXCEPTION.search(text):
        return 0
    if _TRACEBACK.search(text):
        return 3
    if _EXCEPTION.search(text):
        return 2
    return 1
