"""How a secret is shown: what tells one database from another, and nothing else."""

from __future__ import annotations

from urllib.parse import urlsplit

MASK = "***"


def masked(secret: str) -> str:
    """A URL without user, password and query; what is none, or may be read otherwise, as `***`."""
    if not secret:
        return ""
    try:
        parts = urlsplit(secret)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return MASK
    rest = secret.partition("://")[2].removeprefix(parts.netloc)
    # A password with a character that should have been written as %2F ends the host part too early.
    if not parts.scheme or "://" not in secret or "@" in rest:
        return MASK
    place = f"{host}:{port}" if port else host
    user = f"{MASK}@" if "@" in parts.netloc else ""
    query = f"?{MASK}" if parts.query or parts.fragment else ""
    return f"{parts.scheme}://{user}{place}{parts.path}{query}"
