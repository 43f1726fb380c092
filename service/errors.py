"""Every error that this service tells a caller, each with its HTTP status and its stable code."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar


class ProblemError(Exception):
    """An answer other than success, rendered as RFC 9457 `application/problem+json`.

    Subclasses fix `status`, `code` and `title`; an instance adds the `detail` of this occurrence.
    `retry_after_seconds` becomes the `Retry-After` header, `members` extension members of the body;
    `headers` are those of this answer alone.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "The service failed"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        retry_after_seconds: int | None = None,
        members: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.problem_code = code or self.code
        self.retry_after_seconds = retry_after_seconds
        self.members = dict(members or {})
        self.headers = headers


class InvalidEventError(ProblemError):
    """A sign-in that breaks the contract; `problem_code` is the contract's own reason code."""

    status = 422
    code = "invalid_event"
    title = "The sign-in is not valid"


class InvalidRequestError(ProblemError):
    """A request whose body, query or path does not fit the route's schema."""

    status = 422
    code = "invalid_request"
    title = "The request is not valid"


class MalformedBodyError(ProblemError):
    """A body that is not JSON at all; `problem_code` says what is wrong with it."""

    status = 400
    code = "malformed_body"
    title = "The body is not JSON"


class MalformedRequestError(ProblemError):
    """Bytes that are no HTTP request."""

    status = 400
    code = "malformed_request"
    title = "The request is not HTTP"


class RouteNotFoundError(ProblemError):
    status = 404
    code = "not_found"
    title = "There is nothing at this address"


class MethodNotAllowedError(ProblemError):
    status = 405
    code = "method_not_allowed"
    title = "This address does not take this method"


class BodyTimeoutError(ProblemError):
    """The caller did not finish sending the body in time."""

    status = 408
    code = "body_timeout"
    title = "The body did not arrive in time"
    retryable = True


class RequestTimeoutError(ProblemError):
    """The caller did not finish sending the request line and the headers in time."""

    status = 408
    code = "request_timeout"
    title = "The headers did not arrive in time"
    retryable = True


class BodyTooLargeError(ProblemError):
    status = 413
    code = "body_too_large"
    title = "The body is too large"


class BatchTooLargeError(ProblemError):
    """More events than one batch may hold; none of them was looked at."""

    status = 413
    code = "batch_too_large"
    title = "The batch has too many events"


class HeadersTooLargeError(ProblemError):
    """The request line and the headers have more bytes than the service reads."""

    status = 431
    code = "headers_too_large"
    title = "The headers are too large"


class NotAnArrayError(ProblemError):
    status = 400
    code = "not_an_array"
    title = "The body is not an array of sign-ins"


class InvalidEncodingError(ProblemError):
    """A compressed body that is damaged, cut short, or followed by something else."""

    status = 400
    code = "invalid_encoding"
    title = "The body is not what its Content-Encoding says"


class BodiesOverloadedError(ProblemError):
    """The bound on the bytes of all bodies at once is reached; nothing was stored."""

    status = 503
    code = "bodies_overloaded"
    title = "Too many bytes of bodies are under way"
    retryable = True


class TooManyConnectionsError(ProblemError):
    """Every connection that the process may hold is in use."""

    status = 503
    code = "too_many_connections"
    title = "Too many connections are open"
    retryable = True


class EmptyBatchError(ProblemError):
    status = 422
    code = "empty_batch"
    title = "The batch has no events"


class InvalidBatchError(ProblemError):
    """A batch of which no event was valid; `members` hold the results."""

    status = 422
    code = "invalid_batch"
    title = "No sign-in of the batch is valid"


class EventTooLargeError(ProblemError):
    """Stands in a batch's results: no valid event has so many bytes."""

    status = 422
    code = "event_too_large"
    title = "An event of the batch is too large"


class DuplicateEventIdError(ProblemError):
    """Stands in a batch's results: an earlier event of the same batch has the id already."""

    status = 422
    code = "duplicate_event_id"
    title = "An earlier event of the batch has the same event_id"


class UnsupportedMediaTypeError(ProblemError):
    status = 415
    code = "unsupported_media_type"
    title = "The content type or encoding is not supported"


class PublishUnavailableError(ProblemError):
    """Pub/Sub did not take the event within the publish deadline; nothing was stored."""

    status = 503
    code = "publish_unavailable"
    title = "Pub/Sub cannot take the event now"
    retryable = True


class PublishOverloadedError(ProblemError):
    """The bounds on what may be in flight are reached; nothing was stored."""

    status = 503
    code = "publish_overloaded"
    title = "Too many events are in flight"
    retryable = True


class OutboxFullError(ProblemError):
    """Pub/Sub is away and the outbox is at its bound of rows or bytes; nothing was stored."""

    status = 503
    code = "outbox_full"
    title = "No more events can be kept until Pub/Sub is back"
    retryable = True


class PublishRefusedError(ProblemError):
    """Pub/Sub refused the event for good: no such topic, no permission, too large."""

    status = 502
    code = "publish_refused"
    title = "Pub/Sub refused the event"


class ShuttingDownError(ProblemError):
    status = 503
    code = "shutting_down"
    title = "The service is shutting down"
    retryable = True


class JobNotFoundError(ProblemError):
    status = 404
    code = "job_not_found"
    title = "There is no such job"


class ActionNotAllowedError(ProblemError):
    """The job's state does not allow the action; `members` names the allowed ones."""

    status = 409
    code = "action_not_allowed"
    title = "The job's state does not allow this"


class SubscriptionInUseError(ProblemError):
    """An active job reads the subscription, and sharing it was not asked for; `members` name that job."""

    status = 409
    code = "subscription_in_use"
    title = "Another job reads this subscription"


class InvalidParametersError(ProblemError):
    """Dataflow refused the template's parameters; `members` hold the job and one entry for each of them."""

    status = 422
    code = "invalid_parameters"
    title = "Dataflow refused the parameters"


class UnknownPipelineError(ProblemError):
    status = 422
    code = "unknown_pipeline"
    title = "There is no pipeline of that name"


class InvalidPageTokenError(ProblemError):
    status = 400
    code = "invalid_page_token"
    title = "The page token is not valid"


class DatabaseUnavailableError(ProblemError):
    status = 503
    code = "database_unavailable"
    title = "The database cannot be reached now"
    retryable = True


class NotReadyError(ProblemError):
    """Something that the service needs does not answer; `members` names the causes."""

    status = 503
    code = "not_ready"
    title = "The service is not ready"
    retryable = True


class ConfigError(Exception):
    """A setting that keeps the program from starting; the message says how to mend it."""


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
