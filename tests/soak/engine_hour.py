"""An hour of load on the local engine: its memory stays flat and its lag does not grow.

`python -m tests.soak.engine_hour [--minutes 60] [--rate 1000]`. Starts a stack and a job of its own,
publishes at an even rate, and looks every few seconds at the job's memory and at how many messages it is
behind. Ends by itself: with 0 if the memory of the last quarter is within 5 % of that of the second, the lag
of the last quarter is no longer than two seconds of load, and every event is a row after the drain. The
first quarter is for caches to fill.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.pubsub_v1 import types

from service.cli.platform import local_settings, standalone_settings
from service.local.stack import Stack, ensure_subscription
from transforms import bigquery_tables
from transforms.bigquery_rows import parse_table

TICK_SECONDS = 0.1
SAMPLE_SECONDS = 2.0
START_SECONDS = 60.0
MEMORY_GROWTH = 1.05
LAG_SECONDS = 2.0
DATE = "2024-05-06T07:08:09.000001Z"


@dataclass
class Job:
    """The job's process, and what its metrics say."""

    process: subprocess.Popen[str]
    counters: dict[str, int] = field(default_factory=dict)
    is_running: threading.Event = field(default_factory=threading.Event)

    def listen(self) -> None:
        for line in self.process.stdout:
            event = json.loads(line)
            if event["event"] == "metrics":
                self.counters = {one["name"]: one["value"] for one in event["counters"]}
            elif event["event"] == "state":
                self.is_running.set()

    def memory_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    seconds: float
    memory_bytes: int
    lag: int


def load(job: Job, address: str, topic: str, arguments: argparse.Namespace) -> tuple[int, list[Sample]]:
    """Publishes evenly for so many minutes; how many there were, and what was seen meanwhile."""
    samples: list[Sample] = []
    published = 0
    with grpc.insecure_channel(address) as channel:
        publish = channel.unary_unary(
            "/google.pubsub.v1.Publisher/Publish",
            types.PublishRequest.serialize,
            types.PublishResponse.deserialize,
        )
        begun = time.monotonic()
        while (passed := time.monotonic() - begun) < 60 * arguments.minutes:
            if job.process.poll() is not None:
                raise SystemExit(f"the job ended with {job.process.returncode}")
            due = min(int(passed * arguments.rate) - published, 1000)
            if due > 0:
                messages = [{"data": body(number)} for number in range(published, published + due)]
                publish(types.PublishRequest(topic=topic, messages=messages), timeout=30)
                published += due
            if passed > SAMPLE_SECONDS * len(samples):
                written = job.counters.get("rows_written", 0)
                samples.append(Sample(passed, job.memory_bytes(), published - written))
                if len(samples) % 15 == 0:
                    print(describe(samples[-1]), flush=True)
            time.sleep(TICK_SECONDS)
    return published, samples


def body(number: int) -> bytes:
    event = {"userid": f"user-{number % 1000}", "date": DATE, "event_id": f"soak-{number}"}
    return json.dumps(event).encode()


def describe(sample: Sample) -> str:
    return f"{sample.seconds:7.0f} s {sample.memory_bytes / 1e6:8.1f} MB {sample.lag:8,} behind"


def judge(samples: list[Sample], published: int, rows: int, rate: float) -> list[str]:
    """What is wrong, in sentences."""
    quarter = len(samples) // 4
    second, last = samples[quarter : 2 * quarter], samples[3 * quarter :]
    before, after = (statistics.median(s.memory_bytes for s in part) for part in (second, last))
    lag = statistics.median(s.lag for s in last)
    print(f"memory {before / 1e6:.1f} to {after / 1e6:.1f} MB ({after / before - 1:+.1%}), lag {lag:,.0f}")
    wrong = []
    if after > before * MEMORY_GROWTH:
        wrong.append(f"the memory grew by {after / before - 1:.1%}")
    if lag > rate * LAG_SECONDS:
        wrong.append(f"the job is {lag:,.0f} messages behind")
    if rows != published:
        wrong.append(f"{published} were published, and {rows} events are in the table")
    return wrong


def start(command: list[str], environment: dict[str, str], directory: Path) -> Job:
    with (directory / "job.log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=log, text=True
        )
    job = Job(process)
    threading.Thread(target=job.listen, daemon=True).start()
    return job


def catch_up(job: Job, published: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while job.counters.get("messages_acknowledged", 0) < published and time.monotonic() < deadline:
        time.sleep(TICK_SECONDS)


def count(client: Any, table: str) -> int:
    query = client.query(f"SELECT COUNT(DISTINCT event_id) AS n FROM `{table}`", timeout=60)
    return next(iter(query.result(timeout=60)))["n"]


async def run(arguments: argparse.Namespace) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="signin-soak-") as directory:
        settings = local_settings(standalone_settings({"data_dir": Path(directory)}))
        stack = Stack(settings)
        await stack.start()
        try:
            return await run_job(arguments, stack, settings.project, Path(directory))
        finally:
            await stack.stop()


async def run_job(arguments: argparse.Namespace, stack: Stack, project: str, directory: Path) -> list[str]:
    environment = stack.environment
    address = environment["PUBSUB_EMULATOR_HOST"]
    topic, subscription = f"projects/{project}/topics/soak", f"projects/{project}/subscriptions/soak"
    await ensure_subscription(address, topic, subscription)
    tables = [parse_table(f"soak.{name}", project) for name in ("signins", "dead_letters")]
    command = [sys.executable, "-m", "pipeline.user_signin", f"--project={project}"]
    options = [f"--output_table={tables[0]}", f"--dead_letter_table={tables[1]}"]
    job = start([*command, f"--input_subscription={subscription}", *options], environment, directory)
    process = job.process
    try:
        if not await asyncio.to_thread(job.is_running.wait, START_SECONDS):
            raise SystemExit((directory / "job.log").read_text()[-2000:])
        published, samples = await asyncio.to_thread(load, job, address, topic, arguments)
        await asyncio.to_thread(catch_up, job, published)
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 60)
        with bigquery_tables.client(project, environment["BIGQUERY_EMULATOR_HOST"]) as client:
            rows = await asyncio.to_thread(count, client, str(tables[0]))
        print(f"{published:,} published, {rows:,} events in the table, drained with {process.returncode}")
        return judge(samples, published, rows, arguments.rate)
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=1000.0, help="events a second")
    wrong = asyncio.run(run(parser.parse_args()))
    sys.exit("; ".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
