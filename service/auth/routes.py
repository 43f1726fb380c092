"""Which scope a request needs, and under which rule it falls, found before the framework routes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from starlette.routing import BaseRoute, Match, compile_path
from starlette.types import Scope

from service.auth import scopes
from service.config import Settings

_PATTERNS = [(method, path, compile_path(path)[0]) for method, path in scopes.RULES if "{" in path]


def declared(scope: Scope) -> tuple[str, dict[str, str]] | None:
    """The path that the table of `service.auth.scopes` has for a request, and the values of its names.

    None where no rule of the table fits.
    """
    method, path = scope["method"], scope["path"]
    if (method, path) in scopes.RULES:
        return path, {}
    for each, declared_path, pattern in _PATTERNS:
        if each == method and (found := pattern.match(path)):
            return declared_path, found.groupdict()
    return None


class Routes:
    """The table of `service.auth.scopes` as requests meet it; `served` are the routes of the application."""

    def __init__(self, settings: Settings, served: Callable[[], Sequence[BaseRoute]] = lambda: ()) -> None:
        self._served = served
        rules = dict(scopes.RULES)
        if settings.is_open_at_first or settings.allow_unauthenticated_access:
            rules["GET", "/metrics"] = scopes.OPEN  # a scraper beside the service needs no key
        self._exact = {rule: scope for rule, scope in rules.items() if "{" not in rule[1]}
        self._patterns: list[tuple[str, re.Pattern[str], str]] = [
            (method, pattern, rules[method, path]) for method, path, pattern in _PATTERNS
        ]

    def scope_wanted(self, scope: Scope) -> str:
        """The scope that a request needs; `OPEN` where it needs none, or where nothing is at its address."""
        method, path = scope["method"], scope["path"]
        wanted = self._exact.get((method, path))
        if wanted is not None:
            return wanted
        for each, pattern, needed in self._patterns:
            if each == method and pattern.match(path):
                return needed
        # A route that has no rule is closed, whatever was forgotten; what is none may be told to anybody.
        return scopes.ADMIN if self._is_served(scope) else scopes.OPEN

    def _is_served(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is Match.FULL for route in self._served())
