"""Dataflow as this service uses it: its verbs, what it shows of a job, and what can go wrong."""

from service.dataflow.causes import cause_of
from service.dataflow.failures import (
    DataflowError,
    MissingError,
    NameTakenError,
    OutcomeUnknownError,
    RefusedError,
    UnavailableError,
)
from service.dataflow.launches import LAUNCH_TOKEN_LABEL, Launch
from service.dataflow.sightings import (
    IMPORTANCES,
    Distribution,
    Importance,
    MessagePage,
    SeenJob,
    SeenMessage,
    SeenMetric,
    SeenMetrics,
    SeenScaling,
    user_counters,
    user_distributions,
)
from service.dataflow.verbs import CONNECT_SECONDS, Dataflow

__all__ = [
    "CONNECT_SECONDS",
    "IMPORTANCES",
    "LAUNCH_TOKEN_LABEL",
    "Dataflow",
    "DataflowError",
    "Distribution",
    "Importance",
    "Launch",
    "MessagePage",
    "MissingError",
    "NameTakenError",
    "OutcomeUnknownError",
    "RefusedError",
    "SeenJob",
    "SeenMessage",
    "SeenMetric",
    "SeenMetrics",
    "SeenScaling",
    "UnavailableError",
    "cause_of",
    "user_counters",
    "user_distributions",
]
