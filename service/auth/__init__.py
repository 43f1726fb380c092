"""Who may do what: API keys, tokens of an issuer, scopes, and how often."""

from service.auth.callers import actor
from service.auth.guard import Guard

__all__ = ["Guard", "actor"]
