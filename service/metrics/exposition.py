"""The sums over all processes, as Prometheus reads them. https://prometheus.io/docs/instrumenting/exposition_formats/"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from service.metrics import families
from service.metrics.families import Family
from service.metrics.shared import Labelled, Snapshot


def rendered(snapshots: Iterable[Snapshot], shared: dict[str, Labelled], accept: str) -> tuple[bytes, str]:
    """The text and its content type: what all processes counted, and the gauges of what they share.

    `accept` is the header that chooses between Prometheus' own format and OpenMetrics.
    """
    from prometheus_client import exposition

    encode, content_type = exposition.choose_encoder(accept)
    collected: Any = Collected(snapshots, shared)
    return encode(collected), content_type


class Collected:
    """What prometheus_client renders: sums or highest values over the processes, and what they share."""

    def __init__(self, snapshots: Iterable[Snapshot], shared: dict[str, Labelled]) -> None:
        self._numbers: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
        self._buckets: dict[str, dict[tuple[str, ...], tuple[list[int], float]]] = defaultdict(dict)
        for snapshot in snapshots:
            self._add(snapshot.counters.items())
            self._add_buckets(snapshot)
            if snapshot.is_live:
                self._add(snapshot.gauges.items())
        self._add(shared.items())

    def _add(self, named: Iterable[tuple[str, Iterable[tuple[tuple[str, ...], float]]]]) -> None:
        for name, cells in named:
            numbers, takes_highest = self._numbers[name], families.BY_NAME[name].across == "highest"
            for labels, value in cells:
                before = numbers.get(labels, 0)
                numbers[labels] = max(before, value) if takes_highest else before + value

    def _add_buckets(self, snapshot: Snapshot) -> None:
        for name, cells in snapshot.histograms.items():
            sums = self._buckets[name]
            for labels, counts, total in cells:
                before, sum_before = sums.get(labels, ([0] * len(counts), 0.0))
                merged = [one + other for one, other in zip(before, counts, strict=True)]
                sums[labels] = (merged, sum_before + total)

    def collect(self) -> Iterable[Any]:
        from prometheus_client.core import Metric

        for family in families.FAMILIES:
            metric = Metric(family.name.removesuffix("_total"), family.meaning.replace("`", ""), family.kind)
            for labels, value in self._numbers.get(family.name, {}).items():
                metric.add_sample(family.name, dict(zip(family.labels, labels, strict=True)), value)
            for labels, (counts, total) in self._buckets.get(family.name, {}).items():
                _add_histogram(metric, family, dict(zip(family.labels, labels, strict=True)), counts, total)
            yield metric


def _add_histogram(
    metric: Any, family: Family, labels: dict[str, str], counts: list[int], total: float
) -> None:
    below = 0
    for bound, count in zip((*map(str, family.bounds), "+Inf"), counts, strict=True):
        below += count
        metric.add_sample(f"{family.name}_bucket", {**labels, "le": bound}, below)
    metric.add_sample(f"{family.name}_count", labels, below)
    metric.add_sample(f"{family.name}_sum", labels, total)
