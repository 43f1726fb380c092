"""Settings: who may use the service, and how fast."""

from __future__ import annotations

import ipaddress
import re

from pydantic import BaseModel, Field, field_validator

from service.config.listing import listed

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")


class Access(BaseModel):
    """Who may use the service, and how fast."""

    allow_unauthenticated_access: bool = Field(
        False, description="Let anybody who reaches the port use the service, on any address"
    )
    require_authentication: bool = Field(
        False, description="Want a key or a token on loopback too, before there is any key"
    )
    allowed_hosts: str = Field(
        "",
        description="More names, by commas and without ports, that the Host header may have; without any, "
        "loopback's own names on loopback and all elsewhere; * allows all",
    )
    oidc_issuer: str = Field(
        "", description="Issuer of OpenID Connect tokens; empty means that none are taken"
    )
    oidc_audience: str = Field("", description="The aud that a token must have, or several by commas")
    oidc_jwks_url: str = Field(
        "", description="Where the issuer's keys are; empty means that its discovery document says so"
    )
    oidc_scopes: str = Field(
        "", description='What tokens may do, as JSON: `{"email=ci@example.com": ["jobs:write"]}`'
    )
    oidc_keys_seconds: float = Field(
        300.0, gt=0, le=3600, description="How long the issuer's keys are used before they are fetched anew"
    )
    oidc_leeway_seconds: float = Field(
        30.0, ge=0, le=300, description="How far the issuer's clock may be away from ours"
    )
    key_refresh_seconds: float = Field(
        2.0, gt=0, le=60, description="Time after which a revoked key is refused by every process"
    )
    event_requests_per_second: float = Field(
        2000.0, ge=0, description="Rate of single sign-ins of one key, for each process; 0 sets no limit"
    )
    batch_requests_per_second: float = Field(
        50.0, ge=0, description="Rate of batches of one key, for each process; 0 sets no limit"
    )
    control_requests_per_second: float = Field(
        20.0, ge=0, description="Rate of all other requests of one key, for each process; 0 sets no limit"
    )

    @field_validator("allowed_hosts")
    @classmethod
    def _require_hosts(cls, names: str) -> str:
        for name in listed(names):
            if name != "*" and not _NAME.fullmatch(name) and not _is_address(name):
                raise ValueError(
                    f"must be names or addresses without scheme and port, by commas, or *, not {name!r}"
                )
        return names


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
