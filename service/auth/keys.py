"""API keys: how one looks, how it is made, and how it is recognised without being kept."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import datetime
from typing import NamedTuple

from service.models import ApiKey

MARK = b"signin_"
_KEY = re.compile(rb"signin_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}[A-Za-z0-9]?")
_SALT_BYTES = 16
_SECRET_BYTES = 32


class PresentedKey(NamedTuple):
    """A key as a caller sends it, in its two parts."""

    id: str
    secret: bytes


class NewKey(NamedTuple):
    """A key that was just made: its row, and its text, which nothing keeps."""

    row: ApiKey
    text: str


def parse(text: bytes) -> PresentedKey | None:
    """The parts of a key; None where the text is none."""
    found = _KEY.fullmatch(text)
    return PresentedKey(found[1].decode(), found[2]) if found else None


def is_name(name: str) -> bool:
    """Whether a key may be called so: 1 to 64 letters, digits and `. _ -` between them."""
    return _NAME.fullmatch(name) is not None


def generate(
    name: str, scopes: frozenset[str], now: datetime, expires_at: datetime | None, replaces: str | None = None
) -> NewKey:
    """A new key of 256 random bits. The text is shown to whoever asked for it, and never again."""
    key_id, secret, salt = (
        secrets.token_hex(6),
        secrets.token_urlsafe(_SECRET_BYTES),
        secrets.token_bytes(_SALT_BYTES),
    )
    row = ApiKey(
        id=key_id,
        name=name,
        scopes=" ".join(sorted(scopes)),
        salt=salt,
        digest=digest(secret.encode(), salt),
        created_at=now,
        expires_at=expires_at,
        replaces=replaces,
    )
    return NewKey(row, f"signin_{key_id}_{secret}")


def digest(secret: bytes, salt: bytes) -> bytes:
    """What is stored of a secret.

    A fast hash is right here: slow ones make guessing the words that people choose expensive, and a
    secret of 256 random bits cannot be guessed at any speed. A slow one would only let callers with
    wrong keys burn our CPU.
    """
    return hashlib.blake2b(secret, digest_size=32, salt=salt, person=b"signin api key").digest()


def is_secret_of(row: ApiKey, secret: bytes) -> bool:
    """Whether `secret` is the key's, in a time that does not tell how much of it is right."""
    return hmac.compare_digest(digest(secret, row.salt), row.digest)
