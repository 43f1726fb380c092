"""OpenID Connect tokens: whose they are, whether they are good, and what they allow."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from service.auth import scopes
from service.auth.callers import Caller
from service.auth.issuer_keys import ALGORITHMS, IssuerKeys
from service.config import Settings, listed
from service.errors import ConfigError, InvalidCredentialsError

log = logging.getLogger(__name__)

MOST_BYTES = 8192
# What Cloud Run leaves of a signature that it has checked, in the header in which the token came.
# https://cloud.google.com/run/docs/troubleshooting#signature-removed
_REMOVED_SIGNATURE = b"SIGNATURE_REMOVED_BY_GOOGLE"
_REQUIRED = ["exp", "iat", "iss", "aud", "sub"]
_SPACED_CLAIMS = frozenset({"scope", "scp"})  # lists in one string, RFC 8693 section 4.2
_ANY = "*"


class Tokens:
    """Tells whose a token is. What its claims allow, the settings say."""

    def __init__(self, settings: Settings) -> None:
        self._issuer = settings.oidc_issuer
        self._audiences = listed(settings.oidc_audience)
        if not self._audiences:
            raise ConfigError(
                "SIGNIN_OIDC_ISSUER needs SIGNIN_OIDC_AUDIENCE: a token is made for one service."
            )
        self._leeway_seconds = settings.oidc_leeway_seconds
        self._rules = rules_of(settings.oidc_scopes)
        self._keys = IssuerKeys(settings)

    @property
    def issuer(self) -> IssuerKeys:
        """The keys that tokens are verified with."""
        return self._keys

    async def verify(self, token: bytes) -> Caller:
        """The caller that the token names.

        Raises InvalidCredentialsError, or AuthenticationUnavailableError where the issuer's keys are
        not to be had.
        """
        claims = await self._claims(token)
        subject = claims["sub"]
        return Caller(
            id=f"token:{subject}",
            name=f"token:{subject}",
            scopes=granted_by(claims, self._rules),
            expires_at=float(claims["exp"]) + self._leeway_seconds,
        )

    async def _claims(self, token: bytes) -> dict[str, Any]:
        import jwt

        if len(token) > MOST_BYTES:
            raise InvalidCredentialsError("The token is too large.")
        if reason := why_unsigned(token):
            raise InvalidCredentialsError(reason)
        try:
            header = jwt.get_unverified_header(token)
            algorithm = header.get("alg")
            if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:  # `none` and HS* are not
                raise InvalidCredentialsError("The token must be signed with RS256 or ES256.")
            key = await self._keys.find(str(header.get("kid", "")))
            if key is None:
                raise InvalidCredentialsError("The issuer has no key of that kid.")
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm_name],  # the key's own, not what the token wishes
                audience=self._audiences,
                issuer=self._issuer,
                leeway=self._leeway_seconds,
                options={"require": _REQUIRED},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:  # of numbers that are none
            # The audit has the refusal; a line for each would be one for whoever wants to fill the logs.
            log.debug("a token was refused: %s", type(error).__name__)
            raise InvalidCredentialsError(f"The token is not valid: {_reason(error)}.") from None
        return claims


def why_unsigned(token: bytes) -> str:
    """What to do where Cloud Run took the signature away; empty for any other token.

    Such a token proves nothing, whoever forwarded it: anybody can write one.
    """
    if token.rpartition(b".")[2] != _REMOVED_SIGNATURE:
        return ""
    return (
        "Cloud Run has checked this token itself and removed its signature, so it proves nothing here. "
        "Send a token for Cloud Run as `X-Serverless-Authorization: Bearer …`, and beside it this "
        "service's key or token as `Authorization: Bearer …`; both may be the same token."
    )


def _reason(error: Exception) -> str:
    """What may be said of a refused token: the library's words may repeat parts of it."""
    words = {
        "ExpiredSignatureError": "it has expired",
        "ImmatureSignatureError": "its time has not come",
        "InvalidAudienceError": "it is for another audience",
        "InvalidIssuerError": "it is of another issuer",
        "InvalidAlgorithmError": "its algorithm is not that of its key",
        "InvalidSignatureError": "its signature is wrong",
        "MissingRequiredClaimError": "it lacks one of the claims exp, iat, iss, aud and sub",
    }
    return words.get(type(error).__name__, "it is malformed")


def rules_of(text: str) -> Mapping[tuple[str, str], frozenset[str]]:
    """The claims that allow something, as (name, value), with what they allow. Raises ConfigError."""
    try:
        listed = json.loads(text or "{}")
        return dict(_rule(claim, names) for claim, names in listed.items())
    except (ValueError, TypeError, AttributeError) as error:
        example = '{"email=ci@example.com": ["jobs:write"]}'
        raise ConfigError(f"SIGNIN_OIDC_SCOPES must be like {example}: {error}.") from error


def _rule(claim: str, names: Any) -> tuple[tuple[str, str], frozenset[str]]:
    """One rule of the settings. Raises ValueError or TypeError."""
    name, separator, value = claim.partition("=")
    if claim != _ANY and not (name and separator and value):
        raise ValueError(f"{claim!r} is not claim=value")
    if not isinstance(names, list):
        raise TypeError(f"the scopes of {claim!r} are no list")
    return (name, value), scopes.known(names)


def granted_by(claims: Mapping[str, Any], rules: Mapping[tuple[str, str], frozenset[str]]) -> frozenset[str]:
    """All scopes of the rules that the claims fit."""
    found: set[str] = set()
    for (name, value), allowed in rules.items():
        if name == _ANY or _has(claims, name, value):
            found |= allowed
    return scopes.granted(frozenset(found))


def _has(claims: Mapping[str, Any], name: str, value: str) -> bool:
    held = claims.get(name)
    if name == "email" and claims.get("email_verified") is not True:
        return False  # anybody can claim any address
    if isinstance(held, list):
        return value in held
    if isinstance(held, str):
        return value in held.split() if name in _SPACED_CLAIMS else value == held
    return False
