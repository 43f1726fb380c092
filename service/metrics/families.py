"""Every metric there is: its name, what it means, and its labels. The table in the README is made of this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LONG_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
MESSAGES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)


@dataclass(frozen=True)
class Family:
    """One metric. `bounds` are the upper bounds of a histogram's buckets, without the infinite one."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


REQUESTS = Family(
    "signin_requests_total",
    "counter",
    "Requests that were answered; `route` is empty where there is none, `status` 499 where the caller left",
    ("method", "route", "status"),
)
REQUEST_SECONDS = Family(
    "signin_request_seconds",
    "histogram",
    "Time from a request's head to the end of its answer",
    ("method", "route"),
    SECONDS,
)
PROBLEMS = Family(
    "signin_problems_total",
    "counter",
    "Problem documents that were answered, by their code",
    ("route", "code"),
)
REFUSED_CONNECTIONS = Family(
    "signin_connections_refused_total",
    "counter",
    "Connections that ended with a problem before the application saw a request",
    ("code",),
)
EVENTS = Family(
    "signin_events_total",
    "counter",
    "Sign-ins by what became of them: `published`, `spooled`, or `refused` with the code of the reason",
    ("outcome", "code"),
)
PUBLISH_SECONDS = Family(
    "signin_publish_seconds",
    "histogram",
    "Duration of a Publish call, the relay's too; `status` is that of gRPC",
    ("status",),
    SECONDS,
)
PUBLISH_MESSAGES = Family(
    "signin_publish_batch_messages", "histogram", "Messages in a Publish call", (), MESSAGES
)
BREAKER = Family(
    "signin_breaker_processes", "gauge", "Processes whose circuit breaker is in this state", ("state",)
)
BREAKER_OPENED = Family(
    "signin_breaker_opened_total", "counter", "How often a circuit breaker opened after it was closed"
)
OUTBOX_EVENTS = Family("signin_outbox_events", "gauge", "Events in the outbox that wait for Pub/Sub")
OUTBOX_PARKED = Family(
    "signin_outbox_parked_events", "gauge", "Events in the outbox that Pub/Sub refused for good"
)
OUTBOX_BYTES = Family("signin_outbox_bytes", "gauge", "Bytes of events in the outbox, parked ones included")
OUTBOX_AGE = Family(
    "signin_outbox_oldest_age_seconds", "gauge", "Age of the oldest event that waits; 0 where none does"
)
OUTBOX_COUNTED = Family(
    "signin_outbox_counted",
    "gauge",
    "1 where the database could count the outbox; at 0 the other four gauges are missing",
)
OUTBOX_COMMIT_SECONDS = Family(
    "signin_outbox_commit_seconds",
    "histogram",
    "Duration of a commit of events to the outbox; `outcome` is `committed` or `failed`",
    ("outcome",),
    SECONDS,
)
RELAYED = Family(
    "signin_relay_events_total",
    "counter",
    "Events of the outbox that the relay published, or parked because Pub/Sub refused them for good",
    ("outcome",),
)
TICK_SECONDS = Family(
    "signin_reconcile_tick_seconds",
    "histogram",
    "Duration of a look at all active jobs; `outcome` is `complete`, `incomplete` or `failed`",
    ("outcome",),
    LONG_SECONDS,
)
DATAFLOW_SECONDS = Family(
    "signin_dataflow_call_seconds",
    "histogram",
    "Duration of a Dataflow call; `code` is the gRPC status, or `UNKNOWN` where there was none",
    ("method", "code"),
    LONG_SECONDS,
)
PROCESSES = Family("signin_processes", "gauge", "Processes that answer")
INFO = Family("signin_info", "gauge", "Always 1; the version of the service", ("version",))

FAMILIES = (
    REQUESTS,
    REQUEST_SECONDS,
    PROBLEMS,
    REFUSED_CONNECTIONS,
    EVENTS,
    PUBLISH_SECONDS,
    PUBLISH_MESSAGES,
    BREAKER,
    BREAKER_OPENED,
    OUTBOX_EVENTS,
    OUTBOX_PARKED,
    OUTBOX_BYTES,
    OUTBOX_AGE,
    OUTBOX_COUNTED,
    OUTBOX_COMMIT_SECONDS,
    RELAYED,
    TICK_SECONDS,
    DATAFLOW_SECONDS,
    PROCESSES,
    INFO,
)
BY_NAME = {family.name: family for family in FAMILIES}
