"""One micro-batch is one run of the graph on Beam's portable worker, inside this process."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner

from pipeline.local_engine import batch_source

Build = Callable[[Any], None]
_log = logging.getLogger(__name__)

_GROUPING = frozenset(
    {
        common_urns.primitives.GROUP_BY_KEY.urn,
        common_urns.composites.COMBINE_PER_KEY.urn,
        common_urns.composites.RESHUFFLE.urn,
    }
)


class UnsupportedGraphError(Exception):
    """A graph whose meaning reaches beyond one micro-batch; the message names the step."""


class CounterKey(NamedTuple):
    """Which counter of which step."""

    namespace: str
    name: str
    step: str


@dataclass(frozen=True, slots=True)
class Distribution:
    """What Beam keeps of a distribution's values."""

    count: int
    sum: int
    min: int
    max: int

    def with_values_of(self, other: Distribution) -> Distribution:
        """The distribution of both's values."""
        least, most = min(self.min, other.min), max(self.max, other.max)
        return Distribution(self.count + other.count, self.sum + other.sum, least, most)


Counted = Mapping[CounterKey, int | Distribution]


class GraphRuns:
    """Runs the graph that `build` applies, as often as there are batches. `transforms` names its steps.

    Several threads may run it, each on its own batch.

    The graph is translated once, for 10 ms a run instead of 54. That uses names which Beam does not
    promise; where they are gone, each run makes a pipeline of its own.
    """

    def __init__(self, build: Build, options: PipelineOptions) -> None:
        self._build = build
        self._options = options
        pipeline = beam.Pipeline(runner=fn_runner.FnApiRunner(), options=options)
        build(pipeline)
        environment = getattr(pipeline.runner, "_default_environment", None)
        self._proto = pipeline.to_runner_api(default_environment=environment) if environment else None
        self.translates_once = self._proto is not None and hasattr(pipeline.runner, "run_via_runner_api")
        proto = self._proto or pipeline.to_runner_api()
        require_batchable(proto)
        self.transforms = _steps(proto)
        self._threads = threading.local()
        if not self.translates_once:
            _log.warning(
                "This version of Beam makes the local engine slow: a pipeline is built for each batch"
            )

    def run(self, messages: Sequence[Any]) -> Counted:
        """Runs the graph over raw `PubsubMessage`s; returns what Beam counted. Raises what a step raises."""
        with batch_source.lease(messages):
            result = self._run_once()
        found = result.metrics().query()
        counted: dict[CounterKey, int | Distribution] = {
            _key(counter.key): counter.committed for counter in found["counters"]
        }
        for one in found["distributions"]:
            told = one.committed
            if told.count:
                counted[_key(one.key)] = Distribution(told.count, told.sum, told.min, told.max)
        return counted

    def _run_once(self) -> Any:
        if self.translates_once:
            runner, proto = self._own_translation()
            return runner.run_via_runner_api(proto, self._options)
        pipeline = beam.Pipeline(runner=fn_runner.FnApiRunner(), options=self._options)
        self._build(pipeline)
        result = pipeline.run()
        result.wait_until_finish()
        return result

    def _own_translation(self) -> tuple[Any, Any]:
        """A runner and a proto for this thread alone: a run changes both."""
        own: tuple[Any, Any] | None = getattr(self._threads, "own", None)
        if own is None:
            own = self._threads.own = fn_runner.FnApiRunner(), copy.deepcopy(self._proto)
        return own


def _steps(proto: Any) -> list[str]:
    """The full names of the transforms that hold no others, in the order of the graph."""
    transforms = proto.components.transforms
    found: list[str] = []
    waiting = list(reversed(proto.root_transform_ids))
    while waiting:
        transform = transforms[waiting.pop()]
        waiting += reversed(transform.subtransforms)
        if not transform.subtransforms:
            found.append(transform.unique_name)
    return found


def _key(key: Any) -> CounterKey:
    return CounterKey(key.metric.namespace, key.metric.name, key.step)


def require_batchable(proto: Any) -> None:
    """Raises UnsupportedGraphError for windows, state, timers and groupings.

    Each batch ends with the watermark at infinity, so that these would close over one batch only.
    """
    for transform in proto.components.transforms.values():
        what = _beyond_a_batch(transform)
        if what:
            raise UnsupportedGraphError(
                f"The step {transform.unique_name!r} has {what}. The local engine runs each micro-batch by "
                "itself and carries nothing to the next: take --runner DirectRunner or DataflowRunner."
            )
    for strategy in proto.components.windowing_strategies.values():
        if strategy.window_fn.urn != common_urns.global_windows.urn:
            raise UnsupportedGraphError(
                "The graph has windows. The local engine runs each micro-batch by itself and would close "
                "each window at its end: use --runner DirectRunner or DataflowRunner."
            )


def _beyond_a_batch(transform: Any) -> str:
    if transform.spec.urn in _GROUPING:
        return "a grouping by key"
    if transform.spec.urn != common_urns.primitives.PAR_DO.urn:
        return ""
    payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
    if payload.timer_family_specs:
        return "timers"
    if payload.state_specs:
        return "state"
    return ""
