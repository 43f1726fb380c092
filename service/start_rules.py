"""What keeps the service from starting, found before anything is started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from service.auth.key_store import exist_now
from service.auth.tokens import Tokens
from service.config import Settings
from service.errors import ConfigError


def require_startable(settings: Settings) -> None:
    """Raises ConfigError with every reason for which the start would be in vain, a line each."""
    wrong = []
    rules: tuple[Callable[[], object], ...] = (
        lambda: settings.require_closed(exist_now),
        settings.require_startable,
        lambda: _require_consistent(settings),
        lambda: Tokens(settings) if settings.oidc_issuer else None,
    )
    for rule in rules:
        try:
            rule()
        except ConfigError as error:
            wrong.append(str(error))
    if wrong:
        raise ConfigError("\n".join(wrong))


async def start(settings: Settings) -> str:
    """The same as a check: a sentence where all is well."""
    await asyncio.to_thread(require_startable, settings)
    return f"It would start, on {settings.host}."


def _require_consistent(settings: Settings) -> None:
    """Raises ConfigError where one setting would be ignored, or make another useless."""
    if wrong := list(_contradictions(settings)):
        raise ConfigError("\n".join(wrong))


def _contradictions(settings: Settings) -> Iterator[str]:
    if settings.require_authentication and settings.allow_unauthenticated_access:
        yield (
            "SIGNIN_REQUIRE_AUTHENTICATION and SIGNIN_ALLOW_UNAUTHENTICATED_ACCESS contradict each other: "
            "set one of them to false."
        )
    parts = ("oidc_audience", "oidc_jwks_url", "oidc_scopes")
    if not settings.oidc_issuer and (given := [part for part in parts if getattr(settings, part)]):
        names = " and ".join(f"SIGNIN_{part.upper()}" for part in given)
        yield f"Without SIGNIN_OIDC_ISSUER no tokens are taken: set it, or remove {names}."
    largest = max(settings.max_body_bytes, settings.max_batch_body_bytes)
    if settings.max_bodies_bytes < 2 * largest:
        yield (
            f"SIGNIN_MAX_BODIES_BYTES={settings.max_bodies_bytes} has no room for the largest body that may "
            f"come, packed and unpacked: make it {2 * largest} or more, or the caps of bodies smaller."
        )
