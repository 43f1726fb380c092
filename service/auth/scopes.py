"""What a key or a token may be allowed, and which scope each route wants: the one table of both."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Final

EVENTS_WRITE: Final = "events:write"
JOBS_READ: Final = "jobs:read"
JOBS_WRITE: Final = "jobs:write"
DEAD_LETTERS_WRITE: Final = "dead-letters:write"
METRICS_READ: Final = "metrics:read"
ADMIN: Final = "admin"

MEANINGS: Final = {
    EVENTS_WRITE: "send sign-ins, one or a batch",
    JOBS_READ: "look at jobs, their history and what Dataflow says of them",
    JOBS_WRITE: "launch, update and end jobs; includes `jobs:read`",
    DEAD_LETTERS_WRITE: "look at dead letters, which hold payloads, and publish them again",
    METRICS_READ: "read `/metrics` where the service is not on loopback",
    ADMIN: "everything",
}
ALL: Final = frozenset(MEANINGS)

# In the place of a scope: anybody may call it.
OPEN: Final = ""

# The whole truth about who may call what. A route that is not here is for `admin` alone, and a test fails.
RULES: Final[dict[tuple[str, str], str]] = {
    ("POST", "/events/signin"): EVENTS_WRITE,
    ("POST", "/events/signin/batch"): EVENTS_WRITE,
    ("POST", "/jobs"): JOBS_WRITE,
    ("GET", "/jobs"): JOBS_READ,
    ("POST", "/jobs/adopt"): JOBS_WRITE,
    ("GET", "/jobs/unmanaged"): JOBS_READ,
    ("GET", "/jobs/{job_id}"): JOBS_READ,
    ("GET", "/jobs/{job_id}/events"): JOBS_READ,
    ("GET", "/jobs/{job_id}/messages"): JOBS_READ,
    ("GET", "/jobs/{job_id}/metrics"): JOBS_READ,
    ("POST", "/jobs/{job_id}/drain"): JOBS_WRITE,
    ("POST", "/jobs/{job_id}/cancel"): JOBS_WRITE,
    ("POST", "/jobs/{job_id}/force-cancel"): JOBS_WRITE,
    ("POST", "/jobs/{job_id}/update"): JOBS_WRITE,
    ("PATCH", "/jobs/{job_id}/autoscaling"): JOBS_WRITE,
    ("GET", "/dead-letters"): DEAD_LETTERS_WRITE,
    ("POST", "/dead-letters/replay"): DEAD_LETTERS_WRITE,
    ("GET", "/dead-letters/replays"): DEAD_LETTERS_WRITE,
    ("GET", "/dead-letters/replays/{replay_id}"): DEAD_LETTERS_WRITE,
    ("POST", "/dead-letters/replays/{replay_id}/cancel"): DEAD_LETTERS_WRITE,
    ("GET", "/metrics"): METRICS_READ,
    ("GET", "/healthz"): OPEN,
    ("GET", "/startupz"): OPEN,
    ("GET", "/readyz"): OPEN,
    ("GET", "/version"): OPEN,
    ("GET", "/errors"): OPEN,
    ("GET", "/docs"): OPEN,  # there only while SIGNIN_DOCS says so
    ("GET", "/docs/{name}"): OPEN,
    ("GET", "/openapi.json"): OPEN,
}
# A platform asks these by the address of the process, under no name: what they tell anybody is of no use to a
# page that had its name point here.
PROBES: Final = frozenset({"/healthz", "/startupz", "/readyz"})
EVENT_PATHS: Final = frozenset(path for (_, path), scope in RULES.items() if scope == EVENTS_WRITE)


@cache
def granted(scopes: frozenset[str]) -> frozenset[str]:
    """All that `scopes` allow, with what the larger ones include."""
    if ADMIN in scopes:
        return ALL
    return scopes | {JOBS_READ} if JOBS_WRITE in scopes else scopes


def known(names: Iterable[str]) -> frozenset[str]:
    """The names as a set. Raises ValueError where one is no scope or there is none."""
    found = frozenset(names)
    if not found:
        raise ValueError(f"name a scope: {', '.join(MEANINGS)}")
    if wrong := sorted(found - ALL):
        raise ValueError(f"{', '.join(wrong)}: no such scope; there are {', '.join(MEANINGS)}")
    return found
