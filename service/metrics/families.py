"""Every metric there is: its name, what it means, and its labels. The table in the README is made of this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LONG_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
WAIT_SECONDS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
MESSAGES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)


@dataclass(frozen=True)
class Family:
    """One metric. `bounds` are the upper bounds of a histogram's buckets, without the infinite one.

    `across` says how the processes of one service make one number: counters and histograms are sums.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    across: Literal["sum", "highest"] = "sum"


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
    "1 where the database could count the outbox; at 0 the other gauges of the outbox are missing",
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
PUBLISH_WAITING = Family(
    "signin_publish_waiting_events", "gauge", "Events that were taken in and have no answer yet"
)
PUBLISH_FILL = Family(
    "signin_publish_fill_ratio",
    "gauge",
    "How full the fullest process is of events in flight, by number or bytes; at 1 it refuses events",
    across="highest",
)
CONNECTIONS = Family("signin_connections", "gauge", "Open connections of callers")
CONNECTIONS_FILL = Family(
    "signin_connections_fill_ratio",
    "gauge",
    "Open connections of the busiest process to the most that it holds",
    across="highest",
)
OUTBOX_FILL = Family(
    "signin_outbox_fill_ratio",
    "gauge",
    "How full the outbox is, by events or bytes; at 1 events are refused",
)
OUTBOX_WAIT_SECONDS = Family(
    "signin_outbox_wait_seconds",
    "histogram",
    "How long an event had waited in the outbox when the relay published it",
    (),
    WAIT_SECONDS,
)
REPLAYED = Family(
    "signin_replay_letters_total",
    "counter",
    "Dead letters that replays dealt with, dry runs not counted: `replayed`, `repeated` or `unreplayable`",
    ("outcome",),
)
REPLAYS = Family("signin_replays", "gauge", "Replays of dead letters that are being worked on")
REPLAY_LEFT = Family(
    "signin_replay_left_letters", "gauge", "Dead letters that the replay under way has not come to"
)
LEASE = Family(
    "signin_reconciler_lease_held", "gauge", "1 where a process here looks after the jobs, for all replicas"
)
JOBS = Family(
    "signin_jobs",
    "gauge",
    "Active jobs by state; here and below: told by the replica that holds the lease",
    ("state",),
)
JOBS_STALE = Family(
    "signin_jobs_stale", "gauge", "Active jobs that were observed longer ago than they should be"
)
JOBS_ENDED = Family(
    "signin_jobs_ended_total", "counter", "Jobs that were seen to have ended, by their last state", ("state",)
)
_JOB = ("job_id", "job_name")
JOB_KNOWN = Family(
    "signin_job_metrics_known",
    "gauge",
    "1 where Dataflow told a job's metrics at the last look; at 0 they are older, or there are none",
    _JOB,
)
JOB_FRESHNESS = Family(
    "signin_job_freshness_seconds", "gauge", "Age of the oldest event that a job has not processed", _JOB
)
JOB_LATENCY = Family(
    "signin_job_latency_seconds", "gauge", "Longest time that an element has been in a job", _JOB
)
JOB_VCPUS = Family("signin_job_vcpus", "gauge", "Virtual CPUs that a job has", _JOB)
JOB_ROWS = Family("signin_job_rows_total", "counter", "Rows of a job that BigQuery acknowledged", _JOB)
JOB_MESSAGES = Family(
    "signin_job_messages_total",
    "counter",
    "Messages that a job handled; `outcome` is `signin` or `dead_letter`",
    (*_JOB, "outcome"),
)
JOB_LETTERS = Family(
    "signin_job_dead_letters_total", "counter", "Dead letters of a job, by reason", (*_JOB, "reason")
)
JOB_RETRIES = Family("signin_job_write_retries_total", "counter", "Writes that a job repeated", _JOB)
BACKLOG_MESSAGES = Family(
    "signin_backlog_messages", "gauge", "Messages that wait in a job's subscription", _JOB
)
BACKLOG_AGE = Family(
    "signin_backlog_oldest_age_seconds", "gauge", "Age of the oldest message in a job's subscription", _JOB
)
KEYS_AGE = Family(
    "signin_keys_age_seconds",
    "gauge",
    "Time since a process could last look whether its callers' API keys are good; not the issuer's",
    across="highest",
)
ISSUER_KEYS_FAILED = Family(
    "signin_issuer_keys_failed",
    "gauge",
    "1 where the last fetch of the token issuer's keys failed, the first included; missing without one",
    across="highest",
)
LOOP_LAG_SECONDS = Family(
    "signin_event_loop_lag_seconds",
    "histogram",
    "How much later than asked for the event loop woke up a task that waited",
    (),
    SECONDS,
)
CPU = Family("process_cpu_seconds_total", "counter", "CPU time of all processes that answer or did")
MEMORY = Family("process_resident_memory_bytes", "gauge", "Resident memory of all processes")
OPEN_FILES = Family(
    "process_open_fds",
    "gauge",
    "Open file descriptors of the process that has the most",
    across="highest",
)
MOST_FILES = Family(
    "process_max_fds", "gauge", "Most file descriptors that one process may open", across="highest"
)
STARTED_AT = Family(
    "process_start_time_seconds",
    "gauge",
    "When the youngest process started, in seconds since 1970",
    across="highest",
)
PROCESSES = Family("signin_processes", "gauge", "Processes that answer")
INFO = Family("signin_info", "gauge", "Always 1; the version of the service", ("version",))

FAMILIES = tuple(value for value in list(globals().values()) if isinstance(value, Family))
BY_NAME = {family.name: family for family in FAMILIES}
