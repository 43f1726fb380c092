"""A child's log as messages: the level of each line, and the lines of a traceback as one."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import NamedTuple

LINE_CHARACTERS = 2_048  # of a log line that are kept
TRACEBACK_CHARACTERS = 8_192  # of a traceback that are kept, from its end: the exception stands there
TRACEBACK_LINES = 500
_TRACEBACK = "Traceback (most recent call last)"
_LEVEL_WITHIN = 80  # characters: further right the word belongs to the message


class Level(IntEnum):
    """How grave a log line is."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


_LEVEL_WORD = re.compile(r"\b(DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL)\b")
_LEVELS = {"DEBUG": Level.DEBUG, "INFO": Level.INFO, "WARNING": Level.WARNING, "WARN": Level.WARNING}


class LogMessage(NamedTuple):
    """A line, or the lines of a traceback, and how grave it is."""

    text: str
    level: Level


class LogLines:
    """Makes messages of lines. A traceback is given out with its last line, or by `rest`."""

    def __init__(self) -> None:
        self._level = Level.INFO
        self._traceback: list[str] = []

    def take(self, line: str) -> list[LogMessage]:
        """The messages that are complete with this line."""
        text = line.rstrip()
        if self._traceback:
            is_inside = not text or text[0].isspace()
            if is_inside and len(self._traceback) < TRACEBACK_LINES:
                self._traceback.append(text)
                return []
            if not is_inside and not text.startswith(_TRACEBACK) and _level_of(text) is None:
                self._traceback.append(text)
                return self.rest()
            return [*self.rest(), *self.take(line)]
        if text.startswith(_TRACEBACK):
            self._traceback = [text]
            return []
        if not text:
            return []
        # A line without a level belongs to the one before it.
        self._level = _level_of(text) or self._level
        return [LogMessage(shortened(text), self._level)]

    def rest(self) -> list[LogMessage]:
        """The traceback whose last line has not come."""
        lines, self._traceback = self._traceback, []
        text = "\n".join(lines).rstrip()
        if len(text) > TRACEBACK_CHARACTERS:
            text = "…" + text[1 - TRACEBACK_CHARACTERS :]
        self._level = Level.ERROR if lines else self._level
        return [LogMessage(text, Level.ERROR)] if lines else []


def shortened(text: str) -> str:
    """The text, cut to LINE_CHARACTERS."""
    return text if len(text) <= LINE_CHARACTERS else text[: LINE_CHARACTERS - 1] + "…"


def _level_of(text: str) -> Level | None:
    word = None if text[0].isspace() else _LEVEL_WORD.search(text, 0, _LEVEL_WITHIN)
    return _LEVELS.get(word[1], Level.ERROR) if word else None
