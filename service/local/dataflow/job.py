"""A job of the local Dataflow server: what is known of it, and the only ways its state may change."""

from __future__ import annotations

import datetime as dt
import secrets
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from google.cloud import dataflow_v1beta3 as df

from service.local.log_lines import Level
from service.local.supervisor import Counter, Distribution

State = df.JobState
Importance = df.JobMessageImportance
ScalingKind = df.AutoscalingEvent.AutoscalingEventType
ProtoJob = df.Job.pb()
ProtoLaunch = df.LaunchFlexTemplateParameter.pb()

DEFAULT_REGION = "us-central1"  # what Dataflow assumes where a request names no location
MESSAGES_KEPT = 2_000
MESSAGES_STORED = 200
SCALINGS_KEPT = 100

TERMINAL = frozenset(
    {
        State.JOB_STATE_DONE,
        State.JOB_STATE_FAILED,
        State.JOB_STATE_CANCELLED,
        State.JOB_STATE_UPDATED,
        State.JOB_STATE_DRAINED,
    }
)

_NEXT = {
    State.JOB_STATE_QUEUED: {State.JOB_STATE_PENDING, State.JOB_STATE_CANCELLING, State.JOB_STATE_FAILED},
    State.JOB_STATE_PENDING: {
        State.JOB_STATE_RUNNING,
        State.JOB_STATE_UPDATED,  # only after a restart of the server in the middle of an update
        State.JOB_STATE_CANCELLING,
        State.JOB_STATE_FAILED,
        State.JOB_STATE_DONE,
    },
    State.JOB_STATE_RUNNING: {
        State.JOB_STATE_PENDING,  # only at a restart of the server: its worker is replaced
        State.JOB_STATE_DRAINING,
        State.JOB_STATE_CANCELLING,
        State.JOB_STATE_UPDATED,
        State.JOB_STATE_FAILED,
        State.JOB_STATE_DONE,
    },
    State.JOB_STATE_DRAINING: {
        State.JOB_STATE_DRAINED,
        State.JOB_STATE_CANCELLING,
        State.JOB_STATE_FAILED,
    },
    State.JOB_STATE_CANCELLING: {State.JOB_STATE_CANCELLED},
}

_IMPORTANCE = {
    Level.DEBUG: Importance.JOB_MESSAGE_DEBUG,
    Level.INFO: Importance.JOB_MESSAGE_DETAILED,
    Level.WARNING: Importance.JOB_MESSAGE_WARNING,
    Level.ERROR: Importance.JOB_MESSAGE_ERROR,
}


class Message(msgspec.Struct, frozen=True):
    """A job message; `number` counts from 0 and is never reused, `importance` is Dataflow's enum."""

    number: int
    time: dt.datetime
    text: str
    importance: int


class Metric(msgspec.Struct, frozen=True):
    """A counter or a distribution over all workers that the job has had."""

    namespace: str
    name: str
    step: str
    value: float | Distribution
    time: dt.datetime


class Scaling(msgspec.Struct, frozen=True):
    """An autoscaling event; `kind` is Dataflow's enum."""

    time: dt.datetime
    workers: int
    kind: int
    text: str


class LocalJob:
    """One job. `number` is its place in the order of launches; `changed` says that it must be stored.

    It is its own worker's watcher, except for the state RUNNING and the graph, which the fleet judges.
    `doom` is why its worker is being ended against its will, and empty as long as it is not.
    """

    def __init__(
        self,
        number: int,
        proto: Any,
        launch: Any,
        messages: Iterable[Message] = (),
        metrics: Iterable[Metric] = (),
        scalings: Iterable[Scaling] = (),
    ) -> None:
        self.number = number
        self.proto = proto
        self.launch = launch
        self.messages = deque(messages, maxlen=MESSAGES_KEPT)
        self.metrics = {(metric.step, metric.namespace, metric.name): metric for metric in metrics}
        self.scalings = deque(scalings, maxlen=SCALINGS_KEPT)
        self.changed = True
        self.doom = ""
        self._next_message = self.messages[-1].number + 1 if self.messages else 0
        self._earlier: dict[tuple[str, str, str], float | Distribution] = {}

    @property
    def id(self) -> str:
        return str(self.proto.id)

    @property
    def state(self) -> df.JobState:
        return State(self.proto.current_state)

    @property
    def is_active(self) -> bool:
        return self.state not in TERMINAL

    @property
    def is_batch(self) -> bool:
        return bool(self.proto.type_ == df.JobType.JOB_TYPE_BATCH)

    @property
    def transforms(self) -> list[str]:
        """The full names of the graph's steps; none where its worker has not told them."""
        return [step.properties["user_name"] for step in self.proto.steps]

    def said_graph(self, transforms: Sequence[str]) -> None:
        """Takes the full names of the graph's steps."""
        del self.proto.steps[:]
        for number, name in enumerate(transforms, 1):
            step = self.proto.steps.add(kind="ParallelDo", name=f"s{number}")
            step.properties["user_name"] = name
        self.changed = True

    def move(self, state: df.JobState, text: str, importance: int = Importance.JOB_MESSAGE_BASIC) -> None:
        """Changes the state and says so in a message. Raises ValueError for a move that is not allowed."""
        if state not in _NEXT.get(self.state, ()):
            raise ValueError(f"{self.id}: {self.state.name} does not become {state.name}")
        self.proto.current_state = state
        self.proto.current_state_time.GetCurrentTime()
        self.tell(text, importance)

    def tell(self, text: str, importance: int = Importance.JOB_MESSAGE_BASIC) -> None:
        """Adds a job message; the oldest goes where there are MESSAGES_KEPT."""
        self.messages.append(Message(self._next_message, now(), text, int(importance)))
        self._next_message += 1
        self.changed = True

    @property
    def workers(self) -> int:
        """How many workers the job has now."""
        return self.scalings[-1].workers if self.scalings else 0

    def scaled(self, workers: int, text: str) -> None:
        """Notes an autoscaling event: the number of workers from now on, and why."""
        changed = workers != self.workers
        kind = ScalingKind.CURRENT_NUM_WORKERS_CHANGED if changed else ScalingKind.NO_CHANGE
        self.scalings.append(Scaling(now(), workers, int(kind), text))
        self.changed = True

    def forget_details(self) -> None:
        """Keeps of a finished job no more messages than are stored."""
        while len(self.messages) > MESSAGES_STORED:
            self.messages.popleft()

    def expect_new_worker(self) -> None:
        """Counters of the next worker begin at 0: they are added to what was counted so far."""
        self._earlier = {key: metric.value for key, metric in self.metrics.items()}

    def said_counters(self, counters: Sequence[Counter]) -> None:
        """Takes the counters of the present worker."""
        for counter in counters:
            key = (counter.step, counter.namespace, counter.name)
            value = _sum(self._earlier.get(key), counter.value)
            if key not in self.metrics or self.metrics[key].value != value:
                self.metrics[key] = Metric(counter.namespace, counter.name, counter.step, value, now())
                self.changed = True

    def said_line(self, text: str, level: Level) -> None:
        """Takes a line of the worker's log as a job message."""
        self.tell(text, _IMPORTANCE[level])


def _sum(earlier: float | Distribution | None, value: float | Distribution) -> float | Distribution:
    if isinstance(value, Distribution):
        return earlier.with_values_of(value) if isinstance(earlier, Distribution) else value
    return value + (earlier if isinstance(earlier, int | float) else 0)


def new_job(number: int, project: str, region: str, launch: Any, *, is_batch: bool) -> LocalJob:
    """A queued job made from a launch request."""
    kinds = df.JobType
    proto = ProtoJob(
        id=_new_id(),
        project_id=project,
        location=region,
        name=launch.job_name,
        type_=kinds.JOB_TYPE_BATCH if is_batch else kinds.JOB_TYPE_STREAMING,
        current_state=State.JOB_STATE_QUEUED,
        labels=launch.environment.additional_user_labels,
        transform_name_mapping=launch.transform_name_mappings,
    )
    for time in (proto.create_time, proto.start_time, proto.current_state_time):
        time.GetCurrentTime()
    proto.job_metadata.sdk_version.version_display_name = "Apache Beam Python SDK"
    if subscription := launch.parameters.get("input_subscription"):
        proto.job_metadata.pubsub_details.add(subscription=subscription)
    _fill_environment(proto, launch.environment)
    job = LocalJob(number, proto, ProtoLaunch.FromString(launch.SerializeToString()))
    job.tell(f"Job {job.id} was queued.")
    return job


def _fill_environment(proto: Any, given: Any) -> None:
    """What Dataflow shows of the environment that was asked for."""
    shown = proto.environment
    shown.service_account_email = given.service_account_email
    shown.temp_storage_prefix = given.temp_location.removeprefix("gs://")
    shown.experiments.extend(given.additional_experiments)
    shown.worker_region, shown.worker_zone = given.worker_region, given.worker_zone
    shown.service_kms_key_name = given.kms_key_name
    pool = shown.worker_pools.add(kind="harness", num_workers=given.num_workers)
    pool.machine_type, pool.zone = given.machine_type, given.zone
    pool.network, pool.subnetwork = given.network, given.subnetwork
    pool.ip_configuration = given.ip_configuration
    pool.autoscaling_settings.max_num_workers = given.max_workers
    pool.autoscaling_settings.algorithm = given.autoscaling_algorithm


def now() -> dt.datetime:
    """The present moment in UTC."""
    return dt.datetime.now(dt.UTC)


def _new_id() -> str:
    """A job id of Dataflow's form: the launch in Pacific standard time and a random number."""
    pacific = now() - dt.timedelta(hours=8)
    return f"{pacific:%Y-%m-%d_%H_%M_%S}-{10**17 + secrets.randbelow(2**63 - 10**17)}"
