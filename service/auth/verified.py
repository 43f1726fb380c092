"""Who was recognised before: the callers of this process, so that a request costs no question."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import Any

from service.auth import key_store, keys, scopes
from service.auth.callers import Caller
from service.db import Database
from service.errors import InvalidCredentialsError
from service.models import ApiKey, utc_now

log = logging.getLogger(__name__)

MOST = 4096
# While the database cannot be asked, keys that were good go on being good: sign-ins need no database.
STALE_SECONDS = 300.0
TOKEN_SECONDS = 10.0
NOTE_SECONDS = 60.0
UNUSED_SECONDS = 600.0


def fingerprint(credential: bytes) -> bytes:
    """What a key or token is remembered by: looking it up tells no timing of the secret itself."""
    return hashlib.sha256(credential).digest()


class Known:
    """A caller whose key or token was checked; good until `until` (monotonic) unless it is checked again."""

    __slots__ = ("caller", "key_id", "until", "used_at")

    def __init__(self, caller: Caller, key_id: str, until: float) -> None:
        self.caller = caller
        self.key_id = key_id
        self.until = until
        self.used_at = time.monotonic()


class Verified:
    """The callers that this process knows, by the fingerprints of what they present, and those it refused."""

    def __init__(self, refused_seconds: float) -> None:
        self._known: dict[bytes, Known] = {}
        self._refused: dict[bytes, tuple[float, str]] = {}
        self._refused_seconds = refused_seconds
        self._noted_at = time.monotonic()
        # Ids of keys that are known no more, and when they were used last, where that is not noted yet.
        self._dropped: dict[str, float] = {}

    def find(self, mark: bytes, now: float) -> Caller | None:
        """The caller of the fingerprint `mark`, at `now` (monotonic); None where it must be asked for.

        Raises InvalidCredentialsError where that was refused a moment ago, or has expired since.
        """
        known = self._known.get(mark)
        if known is not None and now < known.until:
            if time.time() >= known.caller.expires_at:
                raise InvalidCredentialsError("It has expired.")
            known.used_at = now
            return known.caller
        refused = self._refused.get(mark)
        if refused is not None and now < refused[0]:
            raise InvalidCredentialsError(refused[1])
        return None

    def add_token(self, mark: bytes, caller: Caller) -> None:
        self._add(mark, Known(caller, "", time.monotonic() + TOKEN_SECONDS))

    def add_key(self, mark: bytes, row: ApiKey) -> Caller:
        """Remembers the holder of a key. Raises InvalidCredentialsError where it is good no more."""
        caller = caller_of(row)
        self._add(mark, Known(caller, row.id, time.monotonic() + STALE_SECONDS))
        return caller

    def add_refused(self, mark: bytes, error: InvalidCredentialsError) -> None:
        _make_room(self._refused)
        self._refused[mark] = (time.monotonic() + self._refused_seconds, error.detail)

    async def refresh(self, database: Database) -> bool:
        """Looks at all keys again, so that revoked ones are gone; returns whether there was ever a key.

        A key that nobody has used for a while is forgotten, and asked for at its next use. Raises
        DatabaseUnavailableError.
        """
        now = time.monotonic()
        for mark, known in list(self._known.items()):
            if now >= known.until or now - known.used_at > UNUSED_SECONDS:
                self._drop(mark)
        held = {known.key_id: mark for mark, known in self._known.items() if known.key_id}
        if not held:
            return await key_store.exist(database)
        rows = await key_store.find(database, held.keys())
        for key_id, mark in held.items():
            self._renew(mark, rows.get(key_id))
        return True

    def _renew(self, mark: bytes, row: ApiKey | None) -> None:
        known = self._known.get(mark)
        if known is None:
            return
        try:
            known.caller = caller_of(row)
            known.until = time.monotonic() + STALE_SECONDS
        except InvalidCredentialsError:
            self._drop(mark)

    async def note_use(self, database: Database, *, at_once: bool = False) -> None:
        """Writes down when keys were last used, once a minute; those that were revoked since, too.

        Raises DatabaseUnavailableError; then the next call writes it.
        """
        now, moment = time.monotonic(), utc_now()
        if not at_once and now - self._noted_at < NOTE_SECONDS:
            return
        dropped = dict(self._dropped)
        held = {known.key_id: known.used_at for known in self._known.values() if known.key_id}
        used = dropped | {key_id: used_at for key_id, used_at in held.items() if used_at >= self._noted_at}
        if used:
            moments = {key_id: moment - timedelta(seconds=now - used_at) for key_id, used_at in used.items()}
            await key_store.note_use(database, moments)
        self._noted_at = now
        for key_id, used_at in dropped.items():
            if self._dropped.get(key_id) == used_at:
                del self._dropped[key_id]

    def _add(self, mark: bytes, known: Known) -> None:
        self._refused.pop(mark, None)
        if len(self._known) >= MOST:
            self._drop(next(iter(self._known)))
        self._known[mark] = known

    def _drop(self, mark: bytes) -> None:
        """Forgets a caller, but not that its key was used: of a key that leaked that is what is asked."""
        known = self._known.pop(mark)
        if known.key_id and known.used_at >= self._noted_at:
            _make_room(self._dropped)
            self._dropped[known.key_id] = known.used_at


def caller_of(row: ApiKey | None) -> Caller:
    """Who holds the key. Raises InvalidCredentialsError where it is revoked, has expired, or never was."""
    if row is None:
        raise InvalidCredentialsError("There is no such key.")
    if row.revoked_at is not None:
        raise InvalidCredentialsError("The key is revoked.")
    expires_at = float("inf") if row.expires_at is None else row.expires_at.timestamp()
    if time.time() >= expires_at:
        raise InvalidCredentialsError("The key has expired.")
    return Caller(
        f"key:{row.id}", f"key:{row.name}", scopes.granted(frozenset(row.scopes.split())), expires_at
    )


async def look_up(database: Database, presented: keys.PresentedKey) -> ApiKey:
    """The row of a key that is presented whole. Raises InvalidCredentialsError, DatabaseUnavailableError."""
    rows: Mapping[str, ApiKey] = await key_store.find(database, [presented.id])
    row = rows.get(presented.id)
    is_right = keys.is_secret_of(
        row or _nobody(), presented.secret
    )  # the same work where there is no such key
    if row is None or not is_right:
        raise InvalidCredentialsError("There is no such key.")
    return row


@cache
def _nobody() -> ApiKey:
    """A key that nobody holds."""
    return keys.generate("nobody", frozenset(), utc_now(), None).row


def _make_room(entries: dict[Any, Any]) -> None:
    if len(entries) >= MOST:
        del entries[next(iter(entries))]
