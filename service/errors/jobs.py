"""What a caller of the /jobs routes is told."""

from __future__ import annotations

from service.errors.problem import ProblemError


class JobNotFoundError(ProblemError):
    status = 404
    code = "job_not_found"
    title = "There is no such job"


class ActionNotAllowedError(ProblemError):
    """The job's state or its kind does not allow the action; `members` names the allowed ones."""

    status = 409
    code = "action_not_allowed"
    title = "The job's state or kind does not allow this"


class SubscriptionInUseError(ProblemError):
    """An active job reads the subscription, and sharing it was not asked for; `members` name that job."""

    status = 409
    code = "subscription_in_use"
    title = "Another job reads this subscription"


class InvalidParametersError(ProblemError):
    """The template does not take the parameters; `members` hold one entry for each of them.

    Where it was Dataflow that said so, `members` name the rejected job too.
    """

    status = 422
    code = "invalid_parameters"
    title = "The template does not take these parameters"


class UnknownPipelineError(ProblemError):
    status = 422
    code = "unknown_pipeline"
    title = "There is no pipeline of that name"


class TemplateNotSetError(ProblemError):
    """The settings name no template of the pipeline; the detail names the variable that does."""

    status = 422
    code = "template_not_set"
    title = "The pipeline has no template here"


class InvalidPageTokenError(ProblemError):
    status = 400
    code = "invalid_page_token"
    title = "The page token is not valid"


class InvalidIdempotencyKeyError(ProblemError):
    status = 400
    code = "invalid_idempotency_key"
    title = "The Idempotency-Key is not valid"


class IdempotencyInFlightError(ProblemError):
    """The first request with this Idempotency-Key is not answered yet."""

    status = 409
    code = "idempotency_in_flight"
    title = "A request with this Idempotency-Key is under way"
    retryable = True


class IdempotencyMismatchError(ProblemError):
    """The Idempotency-Key was used with another body."""

    status = 422
    code = "idempotency_mismatch"
    title = "This Idempotency-Key was used for another request"


class AlreadyManagedError(ProblemError):
    """The Dataflow job belongs to a job of this service; `members` name it."""

    status = 409
    code = "already_managed"
    title = "The Dataflow job is managed already"


class DataflowJobNotFoundError(ProblemError):
    status = 404
    code = "dataflow_job_not_found"
    title = "Dataflow has no such active job"


class DataflowRefusedError(ProblemError):
    """Dataflow refused a call that was made for this request."""

    status = 502
    code = "dataflow_refused"
    title = "Dataflow refused"


class DataflowUnavailableError(ProblemError):
    """Dataflow cannot be asked, and nothing that was kept answers the request."""

    status = 503
    code = "dataflow_unavailable"
    title = "Dataflow cannot be reached now"
    retryable = True


class TooManyStreamsError(ProblemError):
    """As many histories are being followed as this process allows."""

    status = 503
    code = "too_many_streams"
    title = "Too many histories are being followed"
    retryable = True
