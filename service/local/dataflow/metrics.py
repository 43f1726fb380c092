"""The metrics of a job in Dataflow's shapes: its code's counters, and those of the service itself.

Names and contexts of the service's own are as Beam's `dataflow_metrics` reads them; each comes twice,
committed and with `tentative`. A distribution comes as one metric of the kind `Distribution`, and again as
four numbers with `_COUNT`, `_MIN`, `_MAX` and `_MEAN` behind its name.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

from service.local.dataflow.job import LocalJob, Metric, now
from service.local.supervisor import Distribution

SYSTEM = "dataflow/v1b3"
# The engine's counter of what was read and finished.
_HANDLED = ("", "local_engine", "messages_acknowledged")


def fill(answer: Any, job: LocalJob, lag_seconds: float | None, since: dt.datetime | None) -> None:
    """Fills in a JobMetrics; without `lag_seconds` the job has no age of its oldest message."""
    for metric in job.metrics.values():
        if since is None or metric.time >= since:
            context = {"namespace": metric.namespace} | ({"step": metric.step} if metric.step else {})
            _add_own(answer, metric.name, context, metric.value, metric.time)
    handled = job.metrics.get(_HANDLED)
    if handled and job.transforms and (since is None or handled.time >= since):
        _add_elements(answer, job.transforms[0], handled)
    present = {"CurrentVcpuCount": float(job.workers)}  # a worker is one process with one busy thread
    if lag_seconds is not None:
        # Its reader stamps a message with its publish time, so that both ages are the same.
        present |= {"SystemLag": lag_seconds, "DataWatermarkAge": lag_seconds}
    for name, value in present.items():
        _add(answer, SYSTEM, name, {}, value, now(), kind="")


def _add_own(
    answer: Any, name: str, context: dict[str, str], value: float | Distribution, time: dt.datetime
) -> None:
    if not isinstance(value, Distribution):
        _add(answer, "user", name, context, value, time)
        return
    mean = value.sum / value.count
    parts = {"count": value.count, "sum": value.sum, "min": value.min, "max": value.max, "mean": mean}
    for shown in _twins(answer, "user", name, context, time, kind="Distribution"):
        shown.distribution.struct_value.update(parts)
    for part in ("count", "min", "max", "mean"):
        _add(answer, "user", f"{name}_{part.upper()}", context, parts[part], time)


def _add_elements(answer: Any, step: str, handled: Metric) -> None:
    output = f"{step.split('/', maxsplit=1)[0]}-out0"
    context = {"output_user_name": output, "original_name": f"{output}-ElementCount"}
    if not isinstance(handled.value, Distribution):
        _add(answer, SYSTEM, "ElementCount", context, handled.value, handled.time)


def _add(
    answer: Any,
    origin: str,
    name: str,
    context: dict[str, str],
    value: float,
    time: dt.datetime,
    *,
    kind: str = "Sum",
) -> None:
    for shown in _twins(answer, origin, name, context, time, kind=kind):
        shown.scalar.number_value = value


def _twins(
    answer: Any, origin: str, name: str, context: dict[str, str], time: dt.datetime, *, kind: str
) -> Iterator[Any]:
    """The metric and its tentative twin; here both are the same."""
    for twin in ({}, {"tentative": "true"}):
        shown = answer.metrics.add(kind=kind)
        shown.name.origin, shown.name.name = origin, name
        shown.name.context.update(context | twin)
        shown.update_time.FromDatetime(time)
        yield shown
