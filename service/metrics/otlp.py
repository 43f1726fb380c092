"""The sums over all processes as OpenTelemetry's metrics: the same numbers under the same names.

Names lose their `_total` and gain a unit, from which a Prometheus that takes OTLP makes the names of
`GET /metrics` again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from service.metrics.exposition import Collected

_UNITS = {"seconds": "s", "bytes": "By"}
_SCOPE = InstrumentationScope("signin.service")
_UNKNOWN: Any = None  # the least and the greatest value, which nobody counts
# (start, end) of what was counted, in nanoseconds since 1970.
Span = tuple[int, int]


def metrics_data(collected: Collected, resource: Any, span: Span) -> MetricsData:
    """What `collected` tells, as sums and histograms that grow from the start of the span to its end."""
    metrics = [_metric(family, span) for family in collected.collect() if family.samples]
    return MetricsData([ResourceMetrics(resource, [ScopeMetrics(_SCOPE, metrics, "")], "")])


def _metric(family: Any, span: Span) -> Metric:
    unit = _UNITS.get(family.name.rpartition("_")[2], "")
    data: Sum | Gauge | Histogram
    if family.type == "histogram":
        data = Histogram(list(_histogram(family.samples, span)), AggregationTemporality.CUMULATIVE)
    else:
        points = [NumberDataPoint(each.labels, *span, each.value) for each in family.samples]
        is_counter = family.type == "counter"
        data = Sum(points, AggregationTemporality.CUMULATIVE, True) if is_counter else Gauge(points)
    return Metric(family.name, family.documentation, unit, data)


def _histogram(samples: Sequence[Any], span: Span) -> Iterable[HistogramDataPoint]:
    """The samples of Prometheus, each bucket with all below it, as points with a bucket's own count."""
    found: dict[tuple[tuple[str, str], ...], dict[str, Any]] = defaultdict(lambda: {"below": []})
    for name, labels, value, *_ in samples:
        key = tuple(item for item in labels.items() if item[0] != "le")
        if "le" in labels:
            found[key]["below"].append((labels["le"], value))
        else:
            found[key][name.rpartition("_")[2]] = value
    for key, point in found.items():
        bounds = [float(bound) for bound, _ in point["below"] if bound != "+Inf"]
        counts = [count for _, count in point["below"]]
        own = [count - before for count, before in zip(counts, [0, *counts], strict=False)]
        yield HistogramDataPoint(
            dict(key), *span, point["count"], point["sum"], own, bounds, _UNKNOWN, _UNKNOWN
        )
