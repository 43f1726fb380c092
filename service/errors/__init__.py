"""Every error that this service tells a caller, each with its HTTP status and its stable code."""

from __future__ import annotations

from service.errors.access import (
    AuthenticationRequiredError,
    AuthenticationUnavailableError,
    HostNotAllowedError,
    InsufficientScopeError,
    InvalidCredentialsError,
    OriginNotAllowedError,
    RateLimitedError,
)
from service.errors.dead_letters import (
    BigQueryRefusedError,
    BigQueryUnavailableError,
    DeadLetterTableNotFoundError,
    ReplayInProgressError,
    ReplayNotFoundError,
)
from service.errors.jobs import (
    ActionNotAllowedError,
    AlreadyManagedError,
    DataflowJobNotFoundError,
    DataflowRefusedError,
    DataflowUnavailableError,
    IdempotencyInFlightError,
    IdempotencyMismatchError,
    InvalidIdempotencyKeyError,
    InvalidPageTokenError,
    InvalidParametersError,
    JobNotFoundError,
    SubscriptionInUseError,
    TemplateNotSetError,
    TooManyStreamsError,
    UnknownPipelineError,
)
from service.errors.problem import ProblemError

__all__ = [  # beside the classes below
    "ActionNotAllowedError",
    "AlreadyManagedError",
    "AuthenticationRequiredError",
    "AuthenticationUnavailableError",
    "BigQueryRefusedError",
    "BigQueryUnavailableError",
    "DataflowJobNotFoundError",
    "DataflowRefusedError",
    "DataflowUnavailableError",
    "DeadLetterTableNotFoundError",
    "HostNotAllowedError",
    "IdempotencyInFlightError",
    "IdempotencyMismatchError",
    "InsufficientScopeError",
    "InvalidCredentialsError",
    "InvalidIdempotencyKeyError",
    "InvalidPageTokenError",
    "InvalidParametersError",
    "JobNotFoundError",
    "OriginNotAllowedError",
    "ProblemError",
    "RateLimitedError",
    "ReplayInProgressError",
    "ReplayNotFoundError",
    "SubscriptionInUseError",
    "TemplateNotSetError",
    "TooManyStreamsError",
    "UnknownPipelineError",
]


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
    """Pub/Sub refused the event for good, because of the event itself."""

    status = 502
    code = "publish_refused"
    title = "Pub/Sub refused the event"


class ShuttingDownError(ProblemError):
    status = 503
    code = "shutting_down"
    title = "The service is shutting down"
    retryable = True


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


class StartingError(ProblemError):
    status = 503
    code = "starting"
    title = "The service is starting"
    retryable = True


class ConfigError(Exception):
    """A setting that keeps the program from starting; the message says how to mend it."""
