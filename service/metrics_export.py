"""The metrics sent by OTLP, where the standard variables of OpenTelemetry ask for it.

There is no second count: what is sent is what `GET /metrics` would answer. One process of a service sends
the sums of all.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from service.metrics import Metrics
from service.metrics.shared import Labelled
from service.tracing import SERVICE_NAME
from transforms import telemetry_export

log = logging.getLogger(__name__)

LAST_SECONDS = 2.0
_INTERVAL_MILLISECONDS = 60_000
_DEADLINE_MILLISECONDS = 30_000


class MetricsExport:
    """Sends the numbers every OTEL_METRIC_EXPORT_INTERVAL milliseconds; within one event loop."""

    def __init__(
        self, metrics: Metrics, shared: Callable[[], Awaitable[dict[str, Labelled]]], version: str
    ) -> None:
        self._exporters = telemetry_export.exporters("metrics") if metrics.speaks_for_all else []
        self._metrics = metrics
        self._shared = shared
        self._version = version
        self._interval = _milliseconds("OTEL_METRIC_EXPORT_INTERVAL", _INTERVAL_MILLISECONDS) / 1000
        self._deadline = _milliseconds("OTEL_METRIC_EXPORT_TIMEOUT", _DEADLINE_MILLISECONDS) / 1000

    async def run(self) -> None:
        """Sends until it is cancelled, and then once more what was counted last."""
        if not self._exporters:
            return
        # What stays the same when one of the workers is replaced, and tells this service from others.
        instance = f"{os.uname().nodename}:{self._metrics.began_at:.3f}"
        resource = telemetry_export.resource(
            SERVICE_NAME, **{"service.version": self._version, "service.instance.id": instance}
        )
        try:
            while True:
                await asyncio.sleep(self._interval)
                await self._sent(resource, self._deadline)
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_SECONDS):
                    await self._sent(resource, LAST_SECONDS)

    async def _sent(self, resource: Any, deadline_seconds: float) -> None:
        try:
            await self._send(resource, deadline_seconds)
        except Exception:  # the next one is due in any case
            log.exception("the metrics could not be exported")

    async def _send(self, resource: Any, deadline_seconds: float) -> None:
        from service.metrics.exposition import Collected
        from service.metrics.otlp import metrics_data

        gauges = await self._shared()
        snapshots = self._metrics.everybody()
        began = min(snapshot.began_at for snapshot in snapshots)
        span = (int(began * 1e9), time.time_ns())
        data = metrics_data(Collected(snapshots, gauges), resource, span)
        for exporter in self._exporters:
            with suppress(TimeoutError):  # the exporter logs what went wrong
                # Not wait_for: on Python 3.11 it loses a cancellation that comes with the result.
                async with asyncio.timeout(deadline_seconds):
                    await _in_thread(partial(exporter.export, data))


def _milliseconds(variable: str, default: int) -> int:
    value = os.environ.get(variable, "").strip()
    if value and not (value.isdecimal() and int(value)):
        log.warning("%s=%s is no number of milliseconds; it is taken as %d", variable, value, default)
        return default
    return int(value or default)


async def _in_thread(work: Callable[[], object]) -> None:
    """Runs `work` in a thread that does not hold up the end of the process."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not ended.done():
            ended.set_result(None)

    def run() -> None:
        try:
            work()
        except Exception:
            log.exception("the metrics could not be sent")
        finally:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(tell)

    threading.Thread(target=run, name="metrics export", daemon=True).start()
    await ended
