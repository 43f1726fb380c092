"""An hour of load on the local engine: its memory stays flat and its lag does not grow.

`python -m tests.soak.engine_hour [--minutes 60] [--rate N]`. Starts a stack and a job of its own. Unless a
rate is given it first measures the full load, what the job moves while there is always a backlog, and takes
half of it. Then it publishes evenly, and looks every few seconds at the memory and at how many messages the
job is behind. Ends by itself: with 0 if the memory of the last quarter is within 5 % of that of the second,
the lag of the last quarter is no longer than two seconds of load and at most one second longer than that of
the second, and every event is a row after the drain. The first quarter is for caches to fill. Publisher,
servers and job share the machine, in both phases alike. A million events take about 30 MB of disk.
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

TICK_SECONDS = 0.05
CALL_MESSAGES = 1000
SAMPLE_SECONDS = 2.0
START_SECONDS = 60.0
MEMORY_GROWTH = 1.05
LAG_SECONDS = 2.0
LAG_GROWTH_SECONDS = 1.0
WARM_SECONDS = 5.0  # of full load that do not count
FULL_BACKLOG = 100_000  # messages; several batches and all that is pulled ahead
SLICE_EVENTS = 1_000_000  # whose ids are counted at once: all of an hour would need the machine's memory
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

    @property
    def written(self) -> int:
        return self.counters.get("rows_written", 0)

    def require_life(self) -> None:
        if self.process.poll() is not None:
            raise SystemExit(f"the job ended with {self.process.returncode}")

    def memory_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    seconds: float
    memory_bytes: int
    lag: int


class Publisher:
    """Publishes events with consecutive numbers, as many in a call as Pub/Sub takes."""

    def __init__(self, channel: grpc.Channel, topic: str) -> None:
        self.published = 0
        self._topic = topic
        self._publish = channel.unary_unary(
            "/google.pubsub.v1.Publisher/Publish",
            types.PublishRequest.pb().SerializeToString,
            types.PublishResponse.pb().FromString,
        )

    def publish(self, count: int) -> None:
        while count > 0:
            part = min(count, CALL_MESSAGES)
            request = types.PublishRequest.pb()(topic=self._topic)
            for number in range(self.published, self.published + part):
                event_id = event_id_of(number)
                data = b'{"userid":"user-%d","date":"%b","event_id":"%b"}'
                request.messages.add(
                    data=data % (number % 1000, DATE.encode(), event_id.encode()),
                    attributes={"event_id": event_id},
                )
            self._publish(request, timeout=30)
            self.published += part
            count -= part


def event_id_of(number: int) -> str:
    """Ids of one slice lie next to each other."""
    return f"soak-{number // SLICE_EVENTS:06}-{number % SLICE_EVENTS:06}"


def full_load(job: Job, publisher: Publisher, seconds: float) -> float:
    """Rows a second while the job always has a backlog."""
    begun = time.monotonic()
    first: tuple[float, int] | None = None
    while (passed := time.monotonic() - begun) < WARM_SECONDS + seconds:
        job.require_life()
        publisher.publish(FULL_BACKLOG - (publisher.published - job.written))
        if first is None and passed >= WARM_SECONDS:
            first = time.monotonic(), job.written
        time.sleep(TICK_SECONDS / 5)
    assert first is not None
    rate = (job.written - first[1]) / (time.monotonic() - first[0])
    catch_up(job, publisher.published)
    return rate


def even_load(job: Job, publisher: Publisher, rate: float, minutes: float) -> list[Sample]:
    """Publishes at the rate; returns what was seen meanwhile."""
    samples: list[Sample] = []
    before = publisher.published
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < 60 * minutes:
        job.require_life()
        publisher.publish(before + int(passed * rate) - publisher.published)
        if passed > SAMPLE_SECONDS * len(samples):
            samples.append(Sample(passed, job.memory_bytes(), publisher.published - job.written))
            if len(samples) % 15 == 0:
                print(describe(samples[-1]), flush=True)
        time.sleep(TICK_SECONDS)
    return samples


def load(
    job: Job, address: str, topic: str, arguments: argparse.Namespace
) -> tuple[float, int, list[Sample]]:
    """The rate, how many events there were, and what was seen."""
    with grpc.insecure_channel(address) as channel:
        publisher = Publisher(channel, topic)
        rate = arguments.rate
        if rate is None:
            full = full_load(job, publisher, arguments.full_load_seconds)
            rate = full / 2
            print(f"full load {full:,.0f} events/s, half of it {rate:,.0f}", flush=True)
        samples = even_load(job, publisher, rate, arguments.minutes)
        return rate, publisher.published, samples


def describe(sample: Sample) -> str:
    return f"{sample.seconds:7.0f} s {sample.memory_bytes / 1e6:8.1f} MB {sample.lag:8,} behind"


def judge(samples: list[Sample], published: int, rows: int, rate: float) -> list[str]:
    """What is wrong, in sentences."""
    quarter = len(samples) // 4
    second, last = samples[quarter : 2 * quarter], samples[3 * quarter :]
    before, after = (statistics.median(s.memory_bytes for s in part) for part in (second, last))
    lag_before, lag = (statistics.median(s.lag for s in part) for part in (second, last))
    print(f"memory {before / 1e6:.1f} to {after / 1e6:.1f} MB ({after / before - 1:+.1%})")
    print(f"behind {lag_before:,.0f} to {lag:,.0f} messages, at {rate:,.0f} events/s")
    wrong = []
    if after > before * MEMORY_GROWTH:
        wrong.append(f"the memory grew by {after / before - 1:.1%}")
    if lag > rate * LAG_SECONDS:
        wrong.append(f"the job is {lag:,.0f} messages behind")
    if lag - lag_before > rate * LAG_GROWTH_SECONDS:
        wrong.append(f"the lag grew by {lag - lag_before:,.0f} messages")
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


def count(client: Any, table: str, published: int) -> int:
    """How many different events there are, slice by slice."""
    found = 0
    for number in range(0, published, SLICE_EVENTS):
        first, last = event_id_of(number), event_id_of(number + SLICE_EVENTS - 1)
        where = f"event_id BETWEEN '{first}' AND '{last}'"
        query = client.query(f"SELECT COUNT(DISTINCT event_id) AS n FROM `{table}` WHERE {where}", timeout=60)
        found += next(iter(query.result(timeout=60)))["n"]
    return found


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
        rate, published, samples = await asyncio.to_thread(load, job, address, topic, arguments)
        await asyncio.to_thread(catch_up, job, published)
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 60)
        with bigquery_tables.client(project, environment["BIGQUERY_EMULATOR_HOST"]) as client:
            rows = await asyncio.to_thread(count, client, str(tables[0]), published)
        print(f"{published:,} published, {rows:,} events in the table, drained with {process.returncode}")
        return judge(samples, published, rows, rate)
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, help="events a second; by default half of the full load")
    parser.add_argument("--full-load-seconds", type=float, default=20.0, help="how long that is measured")
    wrong = asyncio.run(run(parser.parse_args()))
    sys.exit("; ".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
