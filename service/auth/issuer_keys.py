"""The public keys of a token issuer: fetched, kept, and fetched anew when it has turned them over."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from service.config import Settings, is_loopback
from service.errors import AuthenticationUnavailableError, ConfigError

if TYPE_CHECKING:
    from jwt import PyJWK

log = logging.getLogger(__name__)

ALGORITHMS = frozenset({"RS256", "ES256"})
FETCH_SECONDS = 5.0
# A token with a key that we do not know makes us look, but callers must not make us hammer the issuer.
LEAST_PAUSE_SECONDS = 10.0
# While the issuer is away its last keys are good so long.
STALE_SECONDS = 3600.0
MOST_BYTES = 1_000_000
_LEAST_RSA_BITS = 2048


class IssuerKeys:
    """The signing keys of one issuer, by their `kid`."""

    def __init__(self, settings: Settings) -> None:
        self._issuer = settings.oidc_issuer
        self._url = settings.oidc_jwks_url
        for url in filter(None, (self._issuer, self._url)):
            require_safe(url)
        self._fresh_seconds = settings.oidc_keys_seconds
        self._pause_seconds = min(LEAST_PAUSE_SECONDS, settings.oidc_keys_seconds)
        self._keys: dict[str, PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching = asyncio.Lock()
        self.failed = False  # the last fetch, if there was one

    async def find(self, kid: str) -> PyJWK | None:
        """The key of that id, None where the issuer has none. Raises AuthenticationUnavailableError."""
        if not self._is_fresh(kid):
            async with self._fetching:
                if not self._is_fresh(kid):
                    await self._fetch()
        if time.monotonic() - self._fetched_at > STALE_SECONDS:
            raise AuthenticationUnavailableError(
                "The keys of the token's issuer cannot be fetched now.", retry_after_seconds=5
            )
        return self._keys.get(kid)

    def _is_fresh(self, kid: str) -> bool:
        """Whether what we have is the answer, or the issuer was asked a moment ago."""
        now = time.monotonic()
        known = kid in self._keys and now - self._fetched_at < self._fresh_seconds
        return known or now - self._tried_at < self._pause_seconds

    async def _fetch(self) -> None:
        try:
            await self.fetch()
        except Exception as error:  # noqa: BLE001 - whatever the issuer sends, our last keys stay good
            self.failed = True
            log.warning(
                "the keys of %s cannot be fetched: %s", self._issuer, str(error) or type(error).__name__
            )
        finally:
            self._tried_at = time.monotonic()

    async def fetch(self) -> None:
        """Takes the keys that the issuer has now; raises whatever keeps it from that."""
        async with asyncio.timeout(FETCH_SECONDS):
            url = self._url or await self._discovered()
            self._keys = _usable(await _get(url))
            self._fetched_at = time.monotonic()
            self.failed = False

    @property
    def count(self) -> int:
        """How many keys there are."""
        return len(self._keys)

    async def _discovered(self) -> str:
        """Where the discovery document says that the keys are. Raises ValueError.

        https://openid.net/specs/openid-connect-discovery-1_0.html#ProviderConfigurationValidation
        """
        document = await _get(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
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


async def _get(url: str) -> dict[str, Any]:
    """The JSON object at `url`. Raises httpx.HTTPError, ValueError or TypeError."""
    import httpx  # after the start

    body = bytearray()
    async with (
        httpx.AsyncClient(timeout=FETCH_SECONDS, follow_redirects=False) as client,
        client.stream("GET", url, headers={"Accept": "application/json"}) as response,
    ):
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
