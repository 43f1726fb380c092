"""The door of the service: who calls, what it may do, how often, and under which name it calls us."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext

from starlette.types import Scope

from service.auth import key_store, keys, scopes
from service.auth.callers import ANYBODY, SCOPE_KEY, Caller
from service.auth.hosts import Hosts
from service.auth.issuer_keys import IssuerKeys
from service.auth.questions import LookUps, Questions
from service.auth.rate_limits import Headers, RateLimits
from service.auth.routes import Routes
from service.auth.tokens import Tokens, why_unsigned
from service.auth.verified import Verified, fingerprint, look_up
from service.config import Settings
from service.db import Database
from service.errors import (
    AuthenticationRequiredError,
    AuthenticationUnavailableError,
    DatabaseUnavailableError,
    InsufficientScopeError,
    InvalidCredentialsError,
    ProblemError,
    RateLimitedError,
)
from service.models import utc_now

log = logging.getLogger(__name__)

REALM = 'Bearer realm="signin"'
_BEARER = b"bearer "
_KEY_HEADER = b"x-api-key"
# Who asks for an open route waits no longer for being recognised: it is answered anyhow.
RECOGNITION_SECONDS = 0.5


class Guard:
    """Admits a request or raises the problem that its caller is told; `run` keeps what it knows true."""

    def __init__(self, settings: Settings, routes: Routes | None = None) -> None:
        self._routes = routes or Routes(settings)
        self._hosts = Hosts(settings)
        self._limits = RateLimits(settings)
        self._tokens = Tokens(settings) if settings.oidc_issuer else None
        self._verified = Verified(settings.key_refresh_seconds)
        self._refresh_seconds = settings.key_refresh_seconds
        self._is_open_to_all = settings.allow_unauthenticated_access
        self._is_open_at_first = settings.is_open_at_first
        self._keys_exist: bool | None = None
        self._good_keys_exist = False  # looked at only while the issuer is away
        self._of_keys = Questions()
        self._look_ups = LookUps(time.monotonic())
        self.database: Database | None = None
        self._looked_at = time.monotonic()
        self._has_looked = False

    @property
    def knows_callers(self) -> bool:
        """False while nobody can come in: no keys were read yet, or there are only tokens and none can be
        verified.
        """
        if self._tokens is None:
            return self._is_open_to_all or self._has_looked
        return self._is_open_to_all or self._tokens.issuer.are_good or self._good_keys_exist

    @property
    def issuer(self) -> IssuerKeys | None:
        """The keys of the issuer of tokens; None where none are taken."""
        return self._tokens.issuer if self._tokens else None

    def keys_age_seconds(self) -> float:
        """Time since it was last known whether the keys of the callers are still good."""
        return time.monotonic() - self._looked_at

    def issuer_failed(self) -> bool | None:
        """Whether the issuer's keys could not be fetched the last time; None where there is no issuer."""
        return self._tokens.issuer.failed if self._tokens else None

    async def admit(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Headers:
        """Notes the caller in `scope` and returns the headers that the answer carries besides.

        Raises HostNotAllowedError, OriginNotAllowedError, AuthenticationRequiredError,
        InvalidCredentialsError, InsufficientScopeError, RateLimitedError or AuthenticationUnavailableError.
        """
        if scope["path"] not in scopes.PROBES:
            self._hosts.require_ours(headers)
        wanted = self._routes.scope_wanted(scope)
        if wanted == scopes.OPEN:
            return ()
        now = time.monotonic()
        caller = await self._caller(scope, headers, now)
        if caller is ANYBODY:
            self._hosts.require_same_origin(headers)
            scope[SCOPE_KEY] = ANYBODY
            return ()
        scope[SCOPE_KEY] = caller
        told = self._limits.take(caller.id, scope["path"], now)  # what is refused costs, too
        if wanted not in caller.scopes:
            raise _too_little(wanted)
        return told

    async def still_admits(self, scope: Scope) -> bool:
        """Whether a request whose answer goes on would be let in now, rates aside; False while unknown."""
        wanted = self._routes.scope_wanted(scope)
        if wanted == scopes.OPEN:
            return True
        try:
            caller = await self._caller(scope, dict(scope["headers"]), time.monotonic())
        except ProblemError:
            return False
        return wanted in caller.scopes

    async def _caller(self, scope: Scope, headers: Mapping[bytes, bytes], now: float) -> Caller:
        """Who calls, ANYBODY where the service is open. Raises what `admit` says of keys and tokens."""
        credential = _credential(headers)
        if credential is None or (self._tokens is None and not keys.parse(credential)):
            if not await self._is_open():
                raise _nobody(credential)
            return ANYBODY
        mark = fingerprint(credential)
        try:
            known = self._verified.find(mark, now)
            return known or await self._recognised(mark, credential, _address(scope))
        except InvalidCredentialsError as error:
            error.headers = {"WWW-Authenticate": f'{REALM}, error="invalid_token"'}
            raise

    async def recognises(self, scope: Scope) -> bool:
        """Whether the caller of an open route could come in elsewhere: a key, or a service open to all."""
        headers = dict(scope["headers"])
        try:
            self._hosts.require_ours(headers)
            async with asyncio.timeout(RECOGNITION_SECONDS):
                await self._caller(scope, headers, time.monotonic())
        except (ProblemError, TimeoutError):
            return False
        return True

    async def run(self) -> None:
        """Looks at the keys again and again, until it is cancelled; then writes down which were used."""
        database = self.database
        assert database
        try:
            while True:
                if self.issuer:
                    self.issuer.keep_fresh()  # also where no token comes: a key that is withdrawn is gone
                try:
                    await self._look(database)
                except DatabaseUnavailableError as error:
                    log.debug("the keys could not be looked at: %s", error.detail)
                except Exception:  # the keys that are known stay good for a while, so go on trying
                    log.exception("the keys could not be looked at")
                await asyncio.sleep(self._refresh_seconds)
        finally:
            if self.issuer:
                await self.issuer.close()
            try:
                await self._verified.note_use(database, at_once=True)
            except DatabaseUnavailableError as error:
                log.debug("the use of keys could not be noted: %s", error.detail)

    async def _look(self, database: Database) -> None:
        """Looks once whether keys are still good. Raises DatabaseUnavailableError."""
        self._keys_exist = await self._verified.refresh(database) or bool(self._keys_exist)
        if self.issuer and (self.issuer.failed or not self.issuer.are_good):
            self._good_keys_exist = self._keys_exist and await key_store.any_good(database, utc_now())
        await self._verified.note_use(database)
        self._looked_at, self._has_looked = time.monotonic(), True

    async def _is_open(self) -> bool:
        """Whether callers without a key may do everything."""
        if self._is_open_to_all:
            return True
        if not self._is_open_at_first:
            return False
        if self._keys_exist is None:
            await self._find_out()
        return not self._keys_exist

    async def _find_out(self) -> None:
        """Asks whether there are keys. Until that is known nobody comes in without one."""
        if self.database is None:
            self._keys_exist = False
            return
        async with self._of_keys.turn():
            if self._keys_exist is None:
                self._keys_exist = await key_store.exist(self.database)
                self._has_looked = True

    async def _recognised(self, mark: bytes, credential: bytes, address: str) -> Caller:
        """The caller of a credential that was not seen lately."""
        presented = keys.parse(credential)
        # Tokens take no turn: most ask nobody, and for those that do the issuer's keys have a bound.
        async with self._of_keys.turn() if presented else nullcontext():
            known = self._verified.find(mark, time.monotonic())  # another request may have asked
            if known:
                return known
            try:
                if presented:
                    return await self._asked_for_key(mark, presented, address)
                return await self._asked_for_token(mark, credential)
            except InvalidCredentialsError as error:
                self._verified.add_refused(mark, error)
                raise

    async def _asked_for_token(self, mark: bytes, credential: bytes) -> Caller:
        assert self._tokens  # without them only keys come here
        caller = await self._tokens.verify(credential)
        self._verified.add_token(mark, caller)
        return caller

    async def _asked_for_key(self, mark: bytes, presented: keys.PresentedKey, address: str) -> Caller:
        if not self._look_ups.take(address, time.monotonic()):
            raise RateLimitedError("Too many unknown keys were presented.", retry_after_seconds=1)
        if self.database is None:
            raise AuthenticationUnavailableError("The service is starting.", retry_after_seconds=1)
        return self._verified.add_key(mark, await look_up(self.database, presented))


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def _credential(headers: Mapping[bytes, bytes]) -> bytes | None:
    """What the caller presents: X-API-Key, else a bearer token; another scheme is none of ours."""
    found = headers.get(_KEY_HEADER)
    if found is not None:
        return found
    found = headers.get(b"authorization")
    if found is None or found[: len(_BEARER)].lower() != _BEARER:
        return None
    return found[len(_BEARER) :].strip()


def _nobody(credential: bytes | None) -> AuthenticationRequiredError | InvalidCredentialsError:
    if credential is None:
        return AuthenticationRequiredError(
            "Send an API key or a token as `Authorization: Bearer …`, or a key as `X-API-Key`.",
            headers={"WWW-Authenticate": REALM},
        )
    return InvalidCredentialsError(
        why_unsigned(credential) or "This is no API key, and the service takes no tokens.",
        headers={"WWW-Authenticate": f'{REALM}, error="invalid_token"'},
    )


def _too_little(wanted: str) -> InsufficientScopeError:
    return InsufficientScopeError(
        f"This needs the scope {wanted}.",
        members={"scope": wanted},
        headers={"WWW-Authenticate": f'{REALM}, error="insufficient_scope", scope="{wanted}"'},
    )
