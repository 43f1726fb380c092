"""The audit log: one record for each act on jobs, dead letters and the outbox, and for what the door refused.

Records have the logger `service.audit` and a member `audit`; a credential is never a part of them. The
histories of jobs, replays and keys in the database say the same of what was done, and are kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.types import Scope

from service.auth import scopes
from service.auth.callers import ANYBODY, SCOPE_KEY, actor_of
from service.auth.rate_limits import Bucket
from service.auth.routes import declared
from service.config import Settings
from service.logs import handlers_of
from service.metrics.values import route_of
from service.problems import CODE_KEY

log = logging.getLogger(__name__)

REFUSALS_PER_SECOND = 5.0
MOST_REFUSALS_AT_ONCE = 50.0
_LONGEST_PATH = 200
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_TOO_MANY, _UNANSWERED = 429, 499


class Audit:
    """Writes the records of one process; refusals at a bounded rate, because anybody can cause them."""

    def __init__(self) -> None:
        self._refusals = Bucket(MOST_REFUSALS_AT_ONCE, time.monotonic())
        self._unlogged = 0

    def answered(self, scope: Scope, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Notes the answer to a request, if that was an act: something that changes what runs."""
        if scope["method"] in _READING or status in (401, 403):
            return  # the latter `refused` has noted
        route, values = route_of(scope), scope.get("path_params", {})
        if not route:  # nothing was there, or it was turned away before anybody looked
            if (found := declared(scope)) is None or status == _UNANSWERED:
                return
            if status == _TOO_MANY or scope.get(SCOPE_KEY, ANYBODY) is ANYBODY:
                self.refused(scope, status, scope.get(CODE_KEY, ""))  # no rate bounds these
                return
            route, values = found
        if route in scopes.EVENT_PATHS:
            return
        sent = dict(headers)
        about: dict[str, Any] = {name: str(value)[:_LONGEST_PATH] for name, value in values.items()}
        about.update(_made(sent.get(b"location", b"")))
        if code := scope.get(CODE_KEY):
            about["code"] = code
        if b"idempotency-replayed" in sent:
            about["replayed"] = True  # the answer of an earlier request: nothing was done
        act = f"{scope['method']} {route}"
        _write(logging.INFO, "%s: %s, answered %d", actor_of(scope), act, status, about=about)

    def refused(self, scope: Scope, status: int, code: str) -> None:
        """Notes that somebody was not let in; beyond the rate only that there were more."""
        if not self._refusals.take(time.monotonic(), REFUSALS_PER_SECOND, MOST_REFUSALS_AT_ONCE):
            self._unlogged += 1
            return
        client = scope.get("client")
        about = {"code": code, "address": client[0] if client else None}
        if self._unlogged:
            about["unlogged"], self._unlogged = self._unlogged, 0
        path = scope["path"][:_LONGEST_PATH].encode("unicode_escape").decode()  # a line of a log stays one
        act = f"{scope['method']} {path}"
        actor = actor_of(scope) if SCOPE_KEY in scope else "nobody"
        _write(logging.WARNING, "%s: %s, refused with %d", actor, act, status, about=about)


def done_here(settings: Settings, actor: str, act: str, outcome: str, about: Mapping[str, Any]) -> None:
    """Writes that a command did something to the database itself, where a service would write its records.

    `outcome` is `done` or `failed`. No command sets up a log for that: of all else its output is enough.
    """
    audit = {"actor": actor, "act": act, "outcome": outcome, **about}
    extra = {"fields": {"audit": audit}}
    said = (actor, act, outcome)
    record = log.makeRecord(log.name, logging.INFO, __file__, 0, "%s: %s, %s", said, None, extra=extra)
    for handler in handlers_of(settings):
        if record.levelno >= handler.level:
            handler.handle(record)
        handler.close()


def _write(level: int, text: str, actor: str, act: str, status: int, *, about: dict[str, Any]) -> None:
    audit = {"actor": actor, "act": act, "status": status, **about}
    log.log(level, text, actor, act, status, extra={"fields": {"audit": audit}})


def _made(location: bytes) -> dict[str, str]:
    """The id of what the answer says it has made."""
    kind, _, made = location.decode("latin-1").rpartition("/")
    name = {"/jobs": "job_id", "/dead-letters/replays": "replay_id"}.get(kind)
    return {name: made} if name else {}
