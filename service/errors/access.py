"""Errors of who asks, from where, and how often."""

from __future__ import annotations

from service.errors.problem import ProblemError


class AuthenticationRequiredError(ProblemError):
    """A request without a key or a token, to a route that wants one."""

    status = 401
    code = "authentication_required"
    title = "This needs an API key or a token"


class InvalidCredentialsError(ProblemError):
    """A key or a token that is not known, not valid, expired or revoked; `detail` says no more than that."""

    status = 401
    code = "invalid_credentials"
    title = "The key or the token is not valid"


class InsufficientScopeError(ProblemError):
    """A valid key or token whose scopes do not allow the call; `members` names the scope that would."""

    status = 403
    code = "insufficient_scope"
    title = "The key or the token does not allow this"


class OriginNotAllowedError(ProblemError):
    """A page of another site asks a service that is open to this machine alone."""

    status = 403
    code = "origin_not_allowed"
    title = "A page of another site may not ask this"


class HostNotAllowedError(ProblemError):
    """The Host header names a machine that this service does not go by: DNS rebinding, or a proxy."""

    status = 421
    code = "host_not_allowed"
    title = "The service does not go by this name"


class RateLimitedError(ProblemError):
    status = 429
    code = "rate_limited"
    title = "Too many requests"
    retryable = True


class AuthenticationUnavailableError(ProblemError):
    """Whether the key or token is valid cannot be found out now; nothing was done."""

    status = 503
    code = "authentication_unavailable"
    title = "Keys and tokens cannot be checked now"
    retryable = True
