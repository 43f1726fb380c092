"""Event ids for sign-ins that come without one: UUIDs of version 7, which sort by their time."""

from __future__ import annotations

import random
import time


def new_event_id() -> str:
    """A UUIDv7 (RFC 9562): 48 bits of Unix time in ms, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    # Unique, not secret: this generator is seeded by the system and costs no system call each time.
    noise = random.getrandbits(74)
    number = (
        (milliseconds & 0xFFFF_FFFF_FFFF) << 80
        | 0x7 << 76
        | (noise >> 62) << 64
        | 0b10 << 62
        | noise & 0x3FFF_FFFF_FFFF_FFFF
    )
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
