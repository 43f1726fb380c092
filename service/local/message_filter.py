"""The filters of subscriptions: conditions on the attributes of a message."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NoReturn

from service.local.pubsub_rules import invalid

Filter = Callable[[Mapping[str, str]], bool]

MAX_FILTER_BYTES = 256
_TOKEN = re.compile(
    r'\s*(?:(?P<word>[A-Za-z0-9_][A-Za-z0-9_\-]*)|(?P<text>"[^"\\]*")|(?P<sign>!=|[-=:.,()]))'
)


def parse(text: str) -> Filter:
    """Compiles a filter such as `attributes.kind = "web" AND NOT attributes:test`.

    Escapes in string literals are not offered. Raises INVALID_ARGUMENT for what does not parse.
    """
    if len(text.encode()) > MAX_FILTER_BYTES:
        invalid(f"The filter is longer than {MAX_FILTER_BYTES} bytes.")
    return _Parser(text).parse()


class _Parser:
    """Recursive descent over the tokens of one filter; each `_rule` returns a compiled condition."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[str] = []
        self._at = 0
        end = len(text.rstrip())
        position = 0
        while position < end:
            match = _TOKEN.match(text, position)
            if match is None:
                self._fail()
            self._tokens.append(match[match.lastgroup or 0])
            position = match.end()

    def parse(self) -> Filter:
        condition = self._any_or_all()
        if self._at != len(self._tokens):
            self._fail()
        return condition

    def _fail(self) -> NoReturn:
        invalid(f"Invalid filter syntax: {self._text!r}.")

    def _next(self) -> str:
        if self._at == len(self._tokens):
            self._fail()
        self._at += 1
        return self._tokens[self._at - 1]

    def _skip(self, token: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at] == token:
            self._at += 1
            return True
        return False

    def _expect(self, token: str) -> None:
        if not self._skip(token):
            self._fail()

    def _any_or_all(self) -> Filter:
        """AND and OR do not mix without parentheses."""
        parts = [self._term()]
        for word, combine in (("AND", all), ("OR", any)):
            while self._skip(word):
                parts.append(self._term())
            if len(parts) > 1:
                return lambda attributes: combine(part(attributes) for part in parts)
        return parts[0]

    def _term(self) -> Filter:
        if self._skip("NOT") or self._skip("-"):
            condition = self._term()
            return lambda attributes: not condition(attributes)
        if self._skip("("):
            condition = self._any_or_all()
            self._expect(")")
            return condition
        if self._skip("hasPrefix"):
            return self._has_prefix()
        self._expect("attributes")
        if self._skip(":"):
            key = self._key()
            return lambda attributes: key in attributes
        return self._comparison()

    def _has_prefix(self) -> Filter:
        self._expect("(")
        self._expect("attributes")
        self._expect(".")
        key = self._key()
        self._expect(",")
        prefix = self._literal()
        self._expect(")")
        return lambda attributes: key in attributes and attributes[key].startswith(prefix)

    def _comparison(self) -> Filter:
        self._expect(".")
        key = self._key()
        equal = self._skip("=")
        if not equal:
            self._expect("!=")
        value = self._literal()
        # `in` first: reading a missing key of a protobuf map would add it.
        return lambda attributes: (key in attributes and attributes[key] == value) is equal

    def _key(self) -> str:
        token = self._next()
        if not re.match(r'[A-Za-z0-9_"]', token):
            self._fail()
        return token.strip('"')

    def _literal(self) -> str:
        token = self._next()
        if not token.startswith('"'):
            self._fail()
        return token[1:-1]
