"""Settings that are several values in one, by commas."""

from __future__ import annotations


def listed(text: str) -> list[str]:
    """The values, without the spaces around them and without empty ones."""
    return [each.strip() for each in text.split(",") if each.strip()]
