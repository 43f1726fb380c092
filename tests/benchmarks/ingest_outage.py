"""What an outage of Pub/Sub does to the callers: throughput, latency, loss, and the time to drain."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.local.faults import Fault, set_faults
from tests.benchmarks import ingest_load
from tests.benchmarks.ingest_load import Plan, Samples, request_bytes
from tests.benchmarks.ingest_servers import PATH
from tests.outbox_table import waiting_rows
from tests.pubsub_topic import count_all, make_topic
from tests.server_process import Server, local_pubsub, service

CONNECTIONS = 64
HEALTHY_SECONDS = 4.0
WARM_UP_SECONDS = 1.5
DRAIN_FACTOR = 2.0
DRAIN_LOAD = 0.25  # of the healthy throughput goes on while the outbox drains
MODES: dict[str, tuple[Fault, ...] | signal.Signals] = {
    "refused": signal.SIGKILL,
    "hanging": signal.SIGSTOP,
    "unavailable": (Fault(method="Publish", code="UNAVAILABLE"),),
    "unavailable-10": (Fault(method="Publish", code="UNAVAILABLE", share=0.1),),
    "late": (Fault(method="Publish", delay_seconds=5.0),),
}


class Outage:
    """One mode of failure of the Pub/Sub process, begun and ended."""

    def __init__(self, pubsub: Server, directory: Path, mode: str) -> None:
        self.pubsub = pubsub
        self._port = pubsub.port
        self._directory = directory
        self._mode = MODES[mode]

    def begin(self) -> None:
        if self._mode is signal.SIGKILL:
            self.pubsub.kill()
        elif isinstance(self._mode, signal.Signals):
            self.pubsub.send(self._mode)
        else:
            set_faults(self.pubsub.address, self._mode)

    def end(self) -> None:
        if self._mode is signal.SIGKILL:
            self.pubsub = local_pubsub(self._directory, self._port).start()
        elif isinstance(self._mode, signal.Signals):
            self.pubsub.send(signal.SIGCONT)
        else:
            set_faults(self.pubsub.address, [])


def drained(rows: Callable[[], int], seconds: float) -> float | None:
    """Seconds until the outbox is empty; None where that took longer than `seconds`."""
    began = time.monotonic()
    while rows():
        if time.monotonic() - began > seconds:
            return None
        time.sleep(0.1)
    return time.monotonic() - began


def figures_of(samples: Samples) -> dict[str, Any]:
    return {
        "requests_per_second": samples.rate(),
        "p50_ms": samples.percentile_ms(50),
        "p99_ms": samples.percentile_ms(99),
        "statuses": samples.statuses(),
    }


def measure_mode(
    directory: Path, mode: str, seconds: float, database_url: str, workers: int, body: bytes
) -> dict[str, Any]:
    """One outage: healthy, out, back; then every 2xx is counted against what the topic got."""
    pubsub = local_pubsub(directory).start()
    outage = Outage(pubsub, directory, mode)
    try:
        make_topic(pubsub.address)
        with service(directory, pubsub.address, workers=workers, database_url=database_url) as ours:

            def load(length: float, rate: float = 0.0) -> Any:
                plan = Plan("127.0.0.1", ours.port, request_bytes(PATH, body), CONNECTIONS, length, rate)
                return ingest_load.start(plan)

            warm = ingest_load.finish(load(WARM_UP_SECONDS))
            healthy = ingest_load.finish(load(HEALTHY_SECONDS))
            outage.begin()
            out = ingest_load.finish(load(seconds))
            waiting = waiting_rows(database_url, directory)
            outage.end()
            limit = seconds * DRAIN_FACTOR
            loading = load(limit, healthy.rate() * DRAIN_LOAD)
            took = drained(lambda: waiting_rows(database_url, directory), limit)
            after = ingest_load.finish(loading)
            late = drained(lambda: waiting_rows(database_url, directory), limit)
            code = ours.stop()
        good = sum(each.good() for each in (warm, healthy, out, after))
        arrived = count_all(outage.pubsub.address)
    finally:
        outage.pubsub.kill()
    later = out.between((out.began + out.ended) / 2, out.ended)
    return {
        "healthy": figures_of(healthy),
        "outage": figures_of(out),
        "second_half": figures_of(later),
        "second_half_ratio": later.rate() / healthy.rate(),
        "ratio": out.rate() / healthy.rate(),
        "outbox_rows": waiting,
        "drain_seconds": took,
        "drained_in_the_end": late is not None,
        "answered_2xx": good,
        "arrived": arrived,
        "exit_code": code,
    }


def measure(
    directory: Path, modes: list[str], seconds: float, database_url: str, workers: int, body: bytes
) -> dict[str, Any]:
    """Each mode with a service and a topic of its own."""
    found: dict[str, Any] = {}
    for mode in modes:
        with tempfile.TemporaryDirectory(prefix=f"{mode}-", dir=directory) as own:
            figures = found[mode] = measure_mode(Path(own), mode, seconds, database_url, workers, body)
        drain, later = figures["drain_seconds"], figures["second_half"]
        print(
            f"{mode:<15} {figures['ratio']:5.2f} of healthy (>= 0.8)  "
            f"second half {figures['second_half_ratio']:.2f}, p99 {later['p99_ms']:.0f} ms (< 250)  "
            f"{figures['outbox_rows']:>7,} spooled, drained in "
            f"{'too long' if drain is None else f'{drain:.1f} s'} (<= {seconds:g})   "
            f"{figures['answered_2xx']:,} answered, {figures['arrived']:,} arrived   "
            f"{figures['outage']['statuses']}",
            flush=True,
        )
    return found
