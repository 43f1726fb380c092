"""The tables of the metadata database: jobs, the outbox, replays, API keys, and what was migrated."""

from service.models.columns import ID_LENGTH, SHORT_ID_LENGTH, UtcDateTime, new_id, utc_now
from service.models.jobs import Attempt, IdempotencyKey, Job, JobEvent, Lease
from service.models.keys import ApiKey, KeyEvent
from service.models.outbox import OutboxEvent
from service.models.replays import Replay, ReplayedLetter
from service.models.schema import AppliedMigration

__all__ = [
    "ID_LENGTH",
    "SHORT_ID_LENGTH",
    "ApiKey",
    "AppliedMigration",
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
