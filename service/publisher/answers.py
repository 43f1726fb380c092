"""The answers for events that nothing keeps."""

from __future__ import annotations

from collections.abc import Callable

from service.errors import (
    DatabaseUnavailableError,
    OutboxFullError,
    ProblemError,
    PublishOverloadedError,
    PublishUnavailableError,
    ShuttingDownError,
)

RETRY_AFTER_SECONDS = 1


def shutting_down() -> ShuttingDownError:
    return ShuttingDownError("The service is shutting down.", retry_after_seconds=RETRY_AFTER_SECONDS)


def overloaded(retry_after_seconds: int) -> PublishOverloadedError:
    return PublishOverloadedError(
        "Too many events wait for their message id.", retry_after_seconds=retry_after_seconds
    )


def turned_away(error: OutboxFullError | DatabaseUnavailableError, status: str) -> Callable[[], ProblemError]:
    """Makes the answer for an event that neither Pub/Sub nor the outbox took."""
    kind = OutboxFullError if isinstance(error, OutboxFullError) else PublishUnavailableError
    detail = (
        f"Pub/Sub did not confirm the event ({status}), and the outbox cannot keep it: {error.detail} "
        "It may have arrived all the same: send it again with the same event_id."
    )
    seconds = error.retry_after_seconds or RETRY_AFTER_SECONDS
    return lambda: kind(detail, retry_after_seconds=seconds)
