"""Under which names the service may be called, and from which pages.

A service that is open on loopback is open to every page in a browser on this machine, unless it looks at
what browsers say: a page of another site that had its own name point to 127.0.0.1 (DNS rebinding) sends
that name as Host, and one that sends a form or a bare POST sends its own Origin.
"""

from __future__ import annotations

from collections.abc import Mapping

from service.config import Settings, is_loopback, listed
from service.errors import HostNotAllowedError, OriginNotAllowedError

_MOST_REMEMBERED = 64


class Hosts:
    """The names that the settings allow; what was found to be one is remembered as it was sent."""

    def __init__(self, settings: Settings) -> None:
        self._named = named = frozenset(map(str.lower, listed(settings.allowed_hosts)))
        self._is_loopback = is_loopback(settings.host)
        self._takes_all = "*" in named or not (named or self._is_loopback)
        self._remembered: set[bytes] = set()

    def require_ours(self, headers: Mapping[bytes, bytes]) -> None:
        """Raises HostNotAllowedError where the Host header names somebody else; browsers always send one."""
        if self._takes_all:
            return
        host = headers.get(b"host")
        if host is None or host in self._remembered:
            return
        name = hostname(host.decode("latin-1"))
        if name not in self._named and not (self._is_loopback and is_loopback(name)):
            raise HostNotAllowedError(
                "The Host header names another machine. Names besides this machine's own go into "
                "SIGNIN_ALLOWED_HOSTS."
            )
        if len(self._remembered) < _MOST_REMEMBERED:
            self._remembered.add(host)

    @staticmethod
    def require_same_origin(headers: Mapping[bytes, bytes]) -> None:
        """Raises OriginNotAllowedError where a page of another site asks; its requests carry no key."""
        origin = headers.get(b"origin")
        if origin is not None and origin.partition(b"://")[2].lower() != headers.get(b"host", b"").lower():
            raise OriginNotAllowedError("The Origin header names another site than the Host header.")


def hostname(host: str) -> str:
    """The name in a Host header, in lower case and without its port; an IPv6 address without brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
