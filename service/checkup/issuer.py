"""The issuer of OpenID Connect tokens: its keys can be had."""

from __future__ import annotations

from service.auth.issuer_keys import IssuerKeys
from service.checkup.findings import NotAsked, Trouble
from service.config import Settings


async def issuer(settings: Settings) -> str:
    """Fetches the keys as the first token would make the service do."""
    if not settings.oidc_issuer:
        raise NotAsked("No tokens are taken.")
    keys = IssuerKeys(settings)
    try:
        await keys.fetch()
    except TimeoutError:
        raise
    except Exception as error:  # whatever the issuer sends
        raise Trouble(
            f"Its keys cannot be fetched: {str(error) or type(error).__name__}.",
            "Compare SIGNIN_OIDC_ISSUER with the `issuer` of its /.well-known/openid-configuration, and see "
            "whether this machine reaches it; without that page SIGNIN_OIDC_JWKS_URL names the keys.",
        ) from error
    return f"It has {keys.count} keys that sign tokens for us."
