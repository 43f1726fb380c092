"""What keeps the service from starting, found before anything is started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

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
