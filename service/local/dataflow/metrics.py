"""The metrics of a job in Dataflow's shapes: its code's counters, and those of the service itself.

Names and contexts of the service's own are as Beam's `dataflow_metrics` reads them; each comes twice,
committed and with `tentative`.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from service.local.dataflow.job import LocalJob, Metric, now

SYSTEM = "dataflow/v1b3"
# The engine's counter of what was read and finished.
_HANDLED = ("", "local_engine", "messages_acknowledged")


def fill(answer: Any, job: LocalJob, lag_seconds: float | None, since: dt.datetime | None) -> None:
    """Fills in a JobMetrics; without `lag_seconds` the job has no age of its oldest message."""
    for metric in job.metrics.values():
        if since is None or metric.time >= since:
            context = {"namespace": metric.namespace} | ({"step": metric.step} if metric.step else {})
            _add(answer, "user", metric.name, context, metric.value, metric.time)
    handled = job.metrics.get(_HANDLED)
    if handled and job.transforms and (since is None or handled.time >= since):
        _add_elements(answer, job.transforms[0], handled)
    present = {"CurrentVcpuCount": float(job.workers)}  # a worker is one process with one busy thread
    if lag_seconds is not None:
        # Its reader stamps a message with its publish time, so that both ages are the same.
        present |= {"SystemLag": lag_seconds, "DataWatermarkAge": lag_seconds}
    for name, value in present.items():
        _add(answer, SYSTEM, name, {}, value, now(), kind="")


def _add_elements(answer: Any, step: str, handled: Metric) -> None:
    output = f"{step.split('/', maxsplit=1)[0]}-out0"
    context = {"output_user_name": output, "original_name": f"{output}-ElementCount"}
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
    for twin in ({}, {"tentative": "true"}):  # here both are the same
        shown = answer.metrics.add(kind=kind)
        shown.name.origin, shown.name.name = origin, name
        shown.name.context.update(context | twin)
        shown.scalar.number_value = value
        shown.update_time.FromDatetime(time)
