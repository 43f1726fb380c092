"""How many events a second a job moves from Pub/Sub to BigQuery: ours against stock Beam on one machine.

`python -m tests.benchmarks.job_throughput [--rounds N] [--events N] [--json FILE]`. Three contenders, in
turns, against the same local servers, each on a backlog of its own:

`textbook`: `ReadFromPubSub` and `WriteToBigQuery` on the DirectRunner, the baseline end to end.
`direct`: `ReadFromPubSub` and our own write step on the DirectRunner, the baseline with the same sink.
`ours`: `python -m pipeline.user_signin` on the local engine.

A rate is that between the first look that sees rows and the last one that does not see all, so that neither
start nor end counts. CPU times are of the same span, for each process; the looks are part of BigQuery's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
from google.pubsub_v1 import types

from service.cli.platform import local_settings, standalone_settings
from service.local.stack import Stack, ensure_subscription
from tests.benchmarks.engine_latency import cpu_seconds
from transforms import bigquery_tables
from transforms.bigquery_rows import parse_table

DEADLINE_SECONDS = 300.0
LOOK_SECONDS = 0.25
SERVERS = ("pubsub", "bigquery")
Figures = dict[str, float]


@dataclass(frozen=True)
class Contender:
    """One way to move a backlog: a name, how much of it, and the module that moves it."""

    name: str
    events: int
    module: str

    def command(self, project: str, name: str) -> list[str]:
        """What moves the backlog `name`."""
        subscription = f"projects/{project}/subscriptions/{name}"
        own = [
            f"--project={project}",
            f"--input_subscription={subscription}",
            f"--output_table=benchmark.{name}",
            f"--dead_letter_table=benchmark.{name}_dead_letters",
        ]
        stock = [project, subscription, f"{project}:benchmark.{name}"]
        return [sys.executable, "-m", self.module, *(own if self.name == "ours" else stock)]


@dataclass(frozen=True)
class Look:
    """How many rows there were, and what CPU time each process had used."""

    seconds: float
    rows: int
    cpu_seconds: dict[str, float]


def publish(address: str, topic: str, events: int) -> None:
    """Fills the topic, 1,000 messages a call."""
    with grpc.insecure_channel(address) as channel:
        stub = channel.unary_unary(
            "/google.pubsub.v1.Publisher/Publish",
            types.PublishRequest.serialize,
            types.PublishResponse.deserialize,
        )
        body = b'{"userid": "user-%06d", "date": "2017-10-17T20:57:17.338320Z"}'
        for start in range(0, events, 1000):
            messages = [{"data": body % number} for number in range(start, min(start + 1000, events))]
            stub(types.PublishRequest(topic=topic, messages=messages), timeout=30)


def server_pids() -> dict[str, int]:
    """The local servers that this process started."""
    found = {}
    for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        found |= {name: int(pid) for name in SERVERS if f"service.local.{name}" in command}
    return found


def watch(client: object, table: str, events: int, job: subprocess.Popen[bytes]) -> list[Look]:
    """Looks until all rows are there."""
    query = f"SELECT COUNT(*) AS n FROM `{table}`"
    pids = server_pids() | {"job": job.pid}
    looks: list[Look] = []
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if job.poll() is not None:
            raise SystemExit(f"the job for {table} ended with {job.returncode}")
        rows = next(iter(client.query(query, timeout=30).result(timeout=30)))["n"]
        cpu = {name: cpu_seconds(pid) for name, pid in pids.items()}
        looks.append(Look(time.monotonic(), rows, cpu))
        if rows >= events:
            return looks
        time.sleep(LOOK_SECONDS)
    raise SystemExit(f"{table} has {rows} of {events} rows after {DEADLINE_SECONDS:g} s")


def figures(looks: list[Look], events: int) -> Figures:
    """Events a second, and microseconds of CPU for each event by process."""
    between = [look for look in looks if 0 < look.rows < events]
    if len(between) < 3:
        raise SystemExit("that went too fast to be measured; give it more events")
    first, last = between[0], between[-1]
    moved = last.rows - first.rows
    found = {"events_a_second": moved / (last.seconds - first.seconds)}
    for name, used in last.cpu_seconds.items():
        found[f"{name}_cpu_us"] = 1e6 * (used - first.cpu_seconds[name]) / moved
    return found


async def measure(contender: Contender, number: int, stack: Stack, project: str, directory: Path) -> Figures:
    name = f"{contender.name}_{number}"
    environment = stack.environment
    topic, pubsub = f"projects/{project}/topics/{name}", environment["PUBSUB_EMULATOR_HOST"]
    await ensure_subscription(pubsub, topic, f"projects/{project}/subscriptions/{name}")
    client = bigquery_tables.client(project, environment["BIGQUERY_EMULATOR_HOST"])
    tables = [parse_table(f"benchmark.{name}{suffix}", project) for suffix in ("", "_dead_letters")]
    bigquery_tables.ensure_tables(client, *tables)
    publish(pubsub, topic, contender.events)
    log = directory / f"{name}.log"
    return await asyncio.to_thread(
        run_job, contender, client, contender.command(project, name), environment, log
    )


def run_job(
    contender: Contender, client: object, command: list[str], environment: dict[str, str], log: Path
) -> Figures:
    with log.open("wb") as stderr:
        job = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=stderr
        )
        try:
            table = f"benchmark.{log.stem}"
            return figures(watch(client, table, contender.events, job), contender.events)
        except SystemExit:
            print(log.read_text()[-2000:], file=sys.stderr)
            raise
        finally:
            job.kill()
            job.wait()


async def run(arguments: argparse.Namespace) -> dict[str, list[Figures]]:
    contenders = [
        Contender("textbook", arguments.textbook_events, "tests.benchmarks.textbook_job"),
        Contender("direct", arguments.direct_events, "tests.benchmarks.direct_job"),
        Contender("ours", arguments.events, "pipeline.user_signin"),
    ]
    found: dict[str, list[Figures]] = {contender.name: [] for contender in contenders}
    with tempfile.TemporaryDirectory(prefix="signin-benchmark-") as directory:
        settings = local_settings(standalone_settings({"data_dir": Path(directory)}))
        stack = Stack(settings)
        await stack.start()
        try:
            for number in range(arguments.rounds):
                for contender in contenders:
                    one = await measure(contender, number, stack, settings.project, Path(directory))
                    found[contender.name].append(one)
                    print(line(contender.name, [one]), flush=True)
        finally:
            await stack.stop()
    return found


def median(rounds: list[Figures], name: str) -> float:
    return statistics.median(one[name] for one in rounds)


def line(name: str, rounds: list[Figures]) -> str:
    cpu = "".join(f"{median(rounds, f'{process}_cpu_us'):>11,.1f}" for process in ("job", *SERVERS))
    return f"{name:<10}{median(rounds, 'events_a_second'):>12,.0f}{cpu}"


def summary(found: dict[str, list[Figures]]) -> dict[str, float]:
    """The ratios of the medians."""
    ours = median(found["ours"], "events_a_second")
    return {
        "to_the_same_sink": ours / median(found["direct"], "events_a_second"),
        "end_to_end": ours / median(found["textbook"], "events_a_second"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--events", type=int, default=400_000, help="backlog of our job")
    parser.add_argument("--direct-events", type=int, default=5_000)
    parser.add_argument("--textbook-events", type=int, default=2_000)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    print(f"{'':<10}{'events/s':>12}{'CPU us: job':>11}{'pubsub':>11}{'bigquery':>11}", flush=True)
    found = asyncio.run(run(arguments))
    print("medians")
    for name, rounds in found.items():
        print(line(name, rounds))
    ratios = summary(found)
    print(f"ours to direct, the DirectRunner with the same sink: {ratios['to_the_same_sink']:,.0f} times")
    print(f"ours to textbook, end to end: {ratios['end_to_end']:,.0f} times")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rounds": found, "ratios": ratios}, indent=2))


if __name__ == "__main__":
    main()
