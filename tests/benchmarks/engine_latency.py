"""How long from POST to a visible row at an even load, and what an idle job costs.

`python -m tests.benchmarks.engine_latency [--rate 100] [--seconds 20] [--idle-seconds 20] [--json FILE]`.
Starts `signin up` with a job of its own, posts sign-ins one by one, and asks BigQuery all the time which
are there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from google.cloud.bigquery import QueryJobConfig, ScalarQueryParameter

from tests.running import DATE, PROJECT, Up
from transforms import bigquery_tables

WAIT_SECONDS = 30.0
TICKS = 100  # of CPU time in a second
LOOK_BACK_SECONDS = 3.0
QUERY = "SELECT event_id, published_at FROM user_signin.signins WHERE published_at >= @since"


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def post_evenly(url: str, rate: float, seconds: float) -> dict[str, float]:
    """Posts sign-ins; when each was sent, by event id."""
    sent: dict[str, float] = {}
    with httpx.Client(timeout=30) as client, ThreadPoolExecutor(16) as pool:

        def post(number: int) -> None:
            event_id = f"latency-{number}"
            sent[event_id] = time.monotonic()
            body = {"userid": "u", "date": DATE, "event_id": event_id}
            client.post(f"{url}/events/signin", json=body).raise_for_status()

        begun = time.monotonic()
        for number in range(int(rate * seconds)):
            time.sleep(max(0.0, begun + number / rate - time.monotonic()))
            pool.submit(post, number)
    return sent


def watch(client: Any, seen: dict[str, float], ended: threading.Event) -> None:
    """Notes when each event id is first in the table.

    It asks for the rows of the last seconds alone: the server works on one request at a time, and an insert
    would wait for ever longer looks.
    """
    latest = datetime.fromtimestamp(0, UTC)
    while not ended.is_set():
        since = latest - timedelta(seconds=LOOK_BACK_SECONDS)
        parameter = ScalarQueryParameter("since", "TIMESTAMP", since)
        query = client.query(QUERY, job_config=QueryJobConfig(query_parameters=[parameter]), timeout=30)
        rows = list(query.result(timeout=30))
        now = time.monotonic()
        for row in rows:
            seen.setdefault(row["event_id"], now)
        latest = max([latest, *(row["published_at"] for row in rows)])


def measure(arguments: argparse.Namespace, directory: Path) -> dict[str, float]:
    up = Up(directory).start()
    try:
        up.launch()
        client = bigquery_tables.client(PROJECT, up.environment["BIGQUERY_EMULATOR_HOST"])
        seen: dict[str, float] = {}
        ended = threading.Event()
        watcher = threading.Thread(target=watch, args=(client, seen, ended))
        watcher.start()
        sent = post_evenly(up.url, arguments.rate, arguments.seconds)
        deadline = time.monotonic() + WAIT_SECONDS
        while not sent.keys() <= seen.keys() and time.monotonic() < deadline:
            time.sleep(0.05)
        ended.set()
        watcher.join()
        client.close()
        latencies = sorted(1000 * (seen[event_id] - at) for event_id, at in sent.items() if event_id in seen)
        if len(latencies) < len(sent):
            raise SystemExit(f"{len(sent) - len(latencies)} of {len(sent)} events are no rows")
        time.sleep(2)
        (job,) = up.job_processes()
        before = cpu_seconds(job)
        time.sleep(arguments.idle_seconds)
        return {
            "p50_ms": statistics.median(latencies),
            "p99_ms": latencies[int(len(latencies) * 0.99)],
            "idle_cpu_percent": 100 * (cpu_seconds(job) - before) / arguments.idle_seconds,
        }
    finally:
        up.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=100.0, help="events a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--idle-seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="signin-benchmark-") as directory:
        found = measure(arguments, Path(directory))
    print(f"POST to visible row: p50 {found['p50_ms']:.0f} ms, p99 {found['p99_ms']:.0f} ms")
    print(f"idle job: {found['idle_cpu_percent']:.2f} % of a core")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
