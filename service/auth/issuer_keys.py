"""The public keys of a token issuer: fetched, kept, and fetched anew when it has turned them over."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from service.auth.questions import MOST_WAITING, QUESTION_SECONDS
from service.clients import imported
from service.config import Settings, is_loopback
from service.errors import AuthenticationUnavailableError, ConfigError

if TYPE_CHECKING:
    import httpx
    from jwt import PyJWK

log = logging.getLogger(__name__)

ALGORITHMS = frozenset({"RS256", "ES256"})
FETCH_SECONDS = 5.0
# A token with a key that we do not know makes us look, but callers must not make us hammer the issuer: from
# the end of one fetch to the next it is so long, whoever asks for it and whether it went well.
LEAST_PAUSE_SECONDS = 10.0
# While the issuer is away its last keys are good so long.
STALE_SECONDS = 3600.0
MOST_BYTES = 1_000_000
_LEAST_RSA_BITS = 2048


class IssuerKeys:
    """The signing keys of one issuer, by their `kid`.

    They are fetched in a task of their own, one at a time, which `close` ends: a key that is known is
    answered with at once, whatever the issuer does meanwhile.
    """

    def __init__(self, settings: Settings) -> None:
        self._issuer = settings.oidc_issuer
        self._url = settings.oidc_jwks_url
        for url in filter(None, (self._issuer, self._url)):
            require_safe(url)
        self._fresh_seconds = settings.oidc_keys_seconds
        self._pause_seconds = min(LEAST_PAUSE_SECONDS, settings.oidc_keys_seconds)
        self._keys: dict[str, PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._waiting = 0
        self._cause = ""  # why the last fetch failed, if it did

    async def find(self, kid: str) -> PyJWK | None:
        """The key of that id, None where the issuer has none. Raises AuthenticationUnavailableError.

        Only for a key that is not known it waits for the issuer, and only so many do at a time.
        """
        self.keep_fresh()
        if kid not in self._keys or not self.are_good:
            await self._end_of_fetch(self._begun())
        if not self.are_good:
            raise AuthenticationUnavailableError(
                "The keys of the token's issuer cannot be fetched now.", retry_after_seconds=5
            )
        return self._keys.get(kid)

    def keep_fresh(self) -> None:
        """Begins to fetch the keys where they are too old, or the last fetch failed; waits for nothing."""
        if self.failed or self.age_seconds() >= self._fresh_seconds:
            self._begun()

    async def check(self) -> None:
        """Raises AuthenticationUnavailableError, with the cause, where the last fetch was no success.

        It waits for the very first fetch alone, so that a process that has just started does not seem to
        be one without keys.
        """
        self.keep_fresh()
        if math.isinf(self._tried_at) and self._fetching:
            await asyncio.wait({self._fetching})
        if self.failed or not self.are_good:
            raise AuthenticationUnavailableError(self._trouble(), retry_after_seconds=5)

    async def close(self) -> None:
        """Ends the fetch that is under way."""
        if self._fetching and not self._fetching.done():
            self._fetching.cancel()
            await asyncio.wait({self._fetching})

    @property
    def are_good(self) -> bool:
        """Whether tokens can be verified: the keys were fetched, and not too long ago."""
        return self.age_seconds() <= STALE_SECONDS

    @property
    def failed(self) -> bool:
        """Whether the last fetch failed, if there was one."""
        return bool(self._cause)

    def age_seconds(self) -> float:
        """How long ago the keys were fetched last; infinite where they never were."""
        return time.monotonic() - self._fetched_at

    def _begun(self) -> asyncio.Task[None] | None:
        """The fetch that is under way, perhaps begun now; None where one has ended a moment ago."""
        if self._fetching and not self._fetching.done():
            return self._fetching
        if time.monotonic() - self._tried_at < self._pause_seconds:
            return None
        self._fetching = asyncio.create_task(self._fetch(), name="keys of the issuer")
        return self._fetching

    async def _end_of_fetch(self, fetching: asyncio.Task[None] | None) -> None:
        """Waits until a fetch has ended, however it did; who goes away leaves it to the others.

        Raises AuthenticationUnavailableError where too many wait.
        """
        if fetching is None:
            return
        if self._waiting >= MOST_WAITING:
            raise AuthenticationUnavailableError(
                "The keys of the token's issuer are being fetched, and others wait for them.",
                retry_after_seconds=1,
            )
        self._waiting += 1
        try:
            await asyncio.wait({fetching}, timeout=QUESTION_SECONDS)
        finally:
            self._waiting -= 1

    async def _fetch(self) -> None:
        """Fetches the keys; the log is told once that it cannot be done, and once that it can again."""
        try:
            await self.fetch()
        except Exception as error:  # noqa: BLE001 - whatever the issuer sends, our last keys stay good
            level = logging.DEBUG if self._cause else logging.WARNING
            words = str(error) or type(error).__name__
            log.log(level, "the keys of %s cannot be fetched: %s", self._issuer, words)
            self._cause = _cause(error)
        else:
            if self._cause:
                log.info("the keys of %s can be fetched again", self._issuer)
            self._cause = ""
        finally:
            self._tried_at = time.monotonic()

    def _trouble(self) -> str:
        """What is wrong with the issuer, and what it means for its tokens."""
        because = f" ({self._cause})" if self._cause else ""
        age = self.age_seconds()
        if math.isinf(age):
            return f"its keys could not be fetched since the start{because}, so no token is taken"
        if age > STALE_SECONDS:
            return f"its keys could not be fetched for {age:.0f} s{because}, so no token is taken"
        left = STALE_SECONDS - age
        return f"its keys cannot be fetched{because}; the last ones are good for {left:.0f} s more"

    async def fetch(self) -> None:
        """Takes the keys that the issuer has now; raises whatever keeps it from that."""
        for library in ("httpx", "jwt"):
            await imported(library)
        async with asyncio.timeout(FETCH_SECONDS), await asyncio.to_thread(_client) as client:
            url = self._url or await self._discovered(client)
            self._keys = _usable(await _get(client, url))
            self._fetched_at = time.monotonic()

    @property
    def count(self) -> int:
        """How many keys there are."""
        return len(self._keys)

    async def _discovered(self, client: httpx.AsyncClient) -> str:
        """Where the discovery document says that the keys are. Raises ValueError.

        https://openid.net/specs/openid-connect-discovery-1_0.html#ProviderConfigurationValidation
        """
        document = await _get(client, f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
        if document.get("issuer") != self._issuer:
            raise ValueError("the discovery document is another issuer's")
        url = str(document.get("jwks_uri", ""))
        require_safe(url)
        return url


def require_safe(url: str) -> None:
    """Raises ConfigError unless nobody on the way can answer in the issuer's place."""
    parts = urlsplit(url)
    is_local = parts.scheme == "http" and is_loopback(parts.hostname or "")
    if not parts.hostname or (parts.scheme != "https" and not is_local):
        raise ConfigError(f"{url!r} is no https:// address, as SIGNIN_OIDC_ISSUER and its keys must have.")


def _client() -> httpx.AsyncClient:
    """What asks the issuer; to read the certificates takes 0.05 s, which no request may wait for."""
    import httpx

    return httpx.AsyncClient(timeout=FETCH_SECONDS, follow_redirects=False)


async def _get(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    """The JSON object at `url`. Raises httpx.HTTPError, ValueError or TypeError."""
    body = bytearray()
    async with client.stream("GET", url, headers={"Accept": "application/json"}) as response:
        if response.status_code != 200:
            raise ValueError(f"{url} answered {response.status_code}")
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > MOST_BYTES:
                raise ValueError(f"{url} answered with more than {MOST_BYTES} bytes")
    found = json.loads(body)
    if not isinstance(found, dict):
        raise TypeError(f"{url} is no JSON object")
    return found


def _cause(error: Exception) -> str:
    """Why a fetch failed, in words for anybody: those of libraries may repeat addresses and contents."""
    import httpx

    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return f"no answer within {FETCH_SECONDS:g} s"
    if isinstance(error, httpx.TransportError):
        return type(error).__name__
    return "its answer cannot be used"


def _usable(document: dict[str, Any]) -> dict[str, PyJWK]:
    """The keys of a set that sign with an algorithm of ours; each is good for its own algorithm alone."""
    import jwt

    found: dict[str, PyJWK] = {}
    listed = document.get("keys")
    if not isinstance(listed, list):
        raise TypeError("the set of keys has no list of them")
    for each in listed:
        if (
            not isinstance(each, dict)
            or each.get("use", "sig") != "sig"
            or each.get("kty") not in ("RSA", "EC")
        ):
            continue
        try:
            key = jwt.PyJWK(each)
        except jwt.PyJWTError:
            continue  # a curve or an algorithm that we do not take anyhow
        if key.algorithm_name not in ALGORITHMS or not isinstance(kid := each.get("kid"), str):
            continue
        if key.algorithm_name == "RS256" and key.key.key_size < _LEAST_RSA_BITS:
            continue
        found[kid] = key
    if not found:
        raise ValueError("the set has no key for RS256 or ES256")
    return found
