"""Which scope a request needs, found before the framework routes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from starlette.routing import BaseRoute, Match, compile_path
from starlette.types import Scope

from service.auth import scopes
from service.config import Settings


class Routes:
    """The table of `service.auth.scopes` as requests meet it; `served` are the routes of the application."""

    def __init__(self, settings: Settings, served: Callable[[], Sequence[BaseRoute]] = lambda: ()) -> None:
        self._served = served
        rules = dict(scopes.RULES)
        if settings.is_open_at_first or settings.allow_unauthenticated_access:
            rules["GET", "/metrics"] = scopes.OPEN  # a scraper beside the service needs no key
        self._exact = {rule: scope for rule, scope in rules.items() if "{" not in rule[1]}
        self._patterns: list[tuple[str, re.Pattern[str], str]] = [
            (method, compile_path(path)[0], scope) for (method, path), scope in rules.items() if "{" in path
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
