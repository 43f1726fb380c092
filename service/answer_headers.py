"""What every answer tells browsers: not to guess, not to keep, not to show it in another page.

There is nothing of CORS among them: no page of another site is meant to read an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

Header = tuple[bytes, bytes]
Headers = tuple[Header, ...]

NO_SNIFFING: Final = (b"x-content-type-options", b"nosniff")
NO_STORE: Final = (b"cache-control", b"no-store")
# An answer with an ETag is made to be asked for again; so it may be kept, by its caller alone.
_ASK_AGAIN: Final = (b"cache-control", b"private, no-cache")
_NOTHING_ELSE: Final = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_REST: Final = (
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
)
# What `missing` finds for an answer that says nothing of all this itself.
ALL: Final = (*_REST, NO_STORE, _NOTHING_ELSE)


def missing(headers: Iterable[Header]) -> Sequence[Header]:
    """The headers that an answer with these still needs; what a route has said itself stays."""
    names = {name.lower() for name, _ in headers}
    found = list(_REST)
    if b"cache-control" not in names:
        found.append(_ASK_AGAIN if b"etag" in names else NO_STORE)
    if b"content-security-policy" not in names:
        found.append(_NOTHING_ELSE)
    return found
