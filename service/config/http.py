"""Settings: the HTTP server and its bounds."""

from __future__ import annotations

import ipaddress

from pydantic import BaseModel, Field, field_validator

from service.config.listing import listed


class Http(BaseModel):
    """The HTTP server and its bounds."""

    host: str = Field("127.0.0.1", description="Address that the service listens on")
    port: int = Field(
        8080, ge=0, le=65535, description="Port that the service listens on; 0 takes a free one"
    )
    trusted_proxies: str = Field(
        "127.0.0.1,::1",
        description="Addresses and networks, by commas, of the proxies whose X-Forwarded-For tells who "
        "calls; * is whoever connects",
    )
    docs: bool = Field(True, description="Whether /docs and /openapi.json are there")
    max_body_bytes: int = Field(64 * 1024, ge=1024, description="Largest body of one sign-in")
    max_batch_body_bytes: int = Field(5_000_000, ge=1024, description="Largest body of a batch, unpacked too")
    max_batch_events: int = Field(1000, ge=1, le=10_000, description="Most events in a batch")
    max_bodies_bytes: int = Field(
        50_000_000, ge=1024, description="Most bytes of bodies at once, while they come and are worked on"
    )
    body_deadline_seconds: float = Field(10.0, gt=0, description="Longest time that a body may take to come")
    max_header_bytes: int = Field(32 * 1024, ge=1024, description="Largest request line and headers")
    header_deadline_seconds: float = Field(
        10.0, gt=0, description="Longest time until a connection has sent the headers of a request"
    )
    keep_alive_seconds: int = Field(75, ge=1, description="How long a connection waits for its next request")
    shutdown_delay_seconds: float = Field(
        0.0,
        ge=0,
        le=600,
        description="How long the service goes on after SIGTERM while /readyz is 503, for balancers to see",
    )
    max_connections: int = Field(
        2000, ge=1, description="Most connections of a process; beyond, the longest idle one is closed"
    )
    max_event_streams: int = Field(100, ge=1, description="Most histories that are followed at once")
    max_event_ahead_seconds: int = Field(
        24 * 3600, ge=0, description="How far ahead of the clock the date of a sign-in may lie"
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _require_networks(cls, names: str) -> str:
        for name in listed(names):
            try:
                name == "*" or ipaddress.ip_network(name)
            except ValueError:
                raise ValueError(
                    "must be addresses and networks by commas, as 10.0.0.7 and 10.0.0.0/8, or *, "
                    f"not {name!r}"
                ) from None
        return names

    @property
    def trusted_proxy_names(self) -> list[str]:
        """The addresses and networks of `trusted_proxies`, and `*` where it is among them."""
        return listed(self.trusted_proxies)
