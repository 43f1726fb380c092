"""Where a request came from, as the proxies say through which it came, as far as their word counts.

uvicorn has the same for addresses and networks. With `*` it takes the first address that it is told, which is
the caller's own invention where a proxy adds to what it was sent, as nearly all do.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

from service.config import Settings

ANY = "*"
_SCHEMES = {b"http": "http", b"https": "https"}


class Proxies:
    """ASGI middleware that puts a caller's address in the place of a trusted proxy's.

    Each proxy adds the address that it was called from to `X-Forwarded-For`. So the list is read from its
    end, up to the first address that is no trusted proxy's: what stands before that anybody may have written.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        names = settings.trusted_proxy_names
        self._app = app
        self._trusts_whoever_connects = ANY in names
        self._networks = [ipaddress.ip_network(name) for name in names if name != ANY]
        self._is_trusted = lru_cache(maxsize=1024)(self._is_in_a_network)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._trusts(scope["client"]):
            self._believe(scope)
        await self._app(scope, receive, send)

    def _trusts(self, client: tuple[str, int] | None) -> bool:
        return self._trusts_whoever_connects or (client is not None and self._is_trusted(client[0]))

    def _believe(self, scope: Scope) -> None:
        told: list[bytes] = []
        for name, value in scope["headers"]:
            if name == b"x-forwarded-for":
                told.append(value)
            elif name == b"x-forwarded-proto":
                scope["scheme"] = _SCHEMES.get(value.strip(), scope["scheme"])
        if told and (found := self._caller(b",".join(told).decode("latin-1"))):
            scope["client"] = (found, 0)

    def _caller(self, told: str) -> str | None:
        """The last address that no trusted proxy has; where something else stands, the one behind it."""
        found = None
        for entry in reversed(told.split(",")):
            address = _address(entry.strip())
            if address is None:
                break
            found = address
            if not self._is_trusted(address):
                break
        return found

    def _is_in_a_network(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:  # of a socket that has none
            return False
        return any(found in network for network in self._networks)


def _address(entry: str) -> str | None:
    """The address of an entry, which may have a port, in its one spelling; None where it is no address."""
    if entry.startswith("["):
        entry = entry[1:].partition("]")[0]
    elif entry.count(":") == 1:
        entry = entry.partition(":")[0]
    try:
        return str(ipaddress.ip_address(entry))
    except ValueError:
        return None
