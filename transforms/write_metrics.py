"""What the write steps tell of rows: how many, how large, and how long after their publication."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from apache_beam.metrics import Metrics

from transforms.bigquery_protobuf import timestamp_micros
from transforms.bigquery_rows import Row
from transforms.bigquery_writer import Written
from transforms.pubsub_message import METRICS_NAMESPACE


def count_rows(rows: Sequence[Row], written: Written) -> None:
    """Counts a batch that is acknowledged.

    Counters `rows_written` and `bytes_written`. Distributions in milliseconds: `publish_to_row_latency_ms`
    has one value for each Publish call whose messages are among the rows, `row_freshness_ms` one for each
    batch, the age of its oldest.
    """
    Metrics.counter(METRICS_NAMESPACE, "rows_written").inc(len(rows) - len(written.refused))
    Metrics.counter(METRICS_NAMESPACE, "bytes_written").inc(written.size_bytes)
    now = time.time_ns() // 1000
    ages = [max(0, (now - timestamp_micros(text)) // 1000) for text in _publish_times(rows)]
    if not ages:
        return
    latency = Metrics.distribution(METRICS_NAMESPACE, "publish_to_row_latency_ms")
    for age in ages:
        latency.update(age)
    Metrics.distribution(METRICS_NAMESPACE, "row_freshness_ms").update(max(ages))


def _publish_times(rows: Iterable[dict[str, Any]]) -> Iterable[str]:
    """The publish times of the rows, equal neighbours once: all messages of one Publish call share theirs."""
    return [text for text, _ in groupby(row.get("published_at") for row in rows) if text]
