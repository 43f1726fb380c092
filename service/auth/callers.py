"""Who calls: the holder of a key, the subject of a token, or anybody where the service is open."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import Scope

from service.auth import scopes

SCOPE_KEY = "signin.caller"
_ACTOR_LENGTH = 128  # what the history has room for


@dataclass(frozen=True, slots=True)
class Caller:
    """One caller and what it may do; `name` is for people and the history, never a secret.

    `id` tells callers apart for the rate limits. Beyond `expires_at` (seconds of the epoch) it is nobody.
    """

    id: str
    name: str
    scopes: frozenset[str]
    expires_at: float = float("inf")


ANYBODY = Caller("", "api", scopes.ALL)


def actor(request: Request) -> str:
    """Who asked for this, for the history: `key:<name>`, `token:<subject>`, or `api` where all are open."""
    return actor_of(request.scope)


def actor_of(scope: Scope) -> str:
    caller: Caller | None = scope.get(SCOPE_KEY)
    return ANYBODY.name if caller is None else caller.name[:_ACTOR_LENGTH]
