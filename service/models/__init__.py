"""The tables of the metadata database: jobs and their history, the outbox, replays, and API keys."""

from service.models.columns import ID_LENGTH, SHORT_ID_LENGTH, UtcDateTime, new_id, utc_now
from service.models.jobs import Attempt, IdempotencyKey, Job, JobEvent, Lease
from service.models.keys import ApiKey, KeyEvent
from service.models.outbox import OutboxEvent
from service.models.replays import Replay, ReplayedLetter

__all__ = [
    "ID_LENGTH",
    "SHORT_ID_LENGTH",
    "ApiKey",
    "Attempt",
    "IdempotencyKey",
    "Job",
    "JobEvent",
    "KeyEvent",
    "Lease",
    "OutboxEvent",
    "Replay",
    "ReplayedLetter",
    "UtcDateTime",
    "new_id",
    "utc_now",
]
