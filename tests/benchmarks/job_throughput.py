"""How many events a second a job moves from Pub/Sub to BigQuery: ours against the textbook pair.

`python -m tests.benchmarks.job_throughput [--events N] [--textbook-events N] [--json FILE]`. Both run one
after the other against the same local servers, each on a backlog of its own. The rate is that between the
first look at which rows are there and the look at which all are, so that no start-up counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
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
from transforms import bigquery_tables
from transforms.bigquery_rows import parse_table

DEADLINE_SECONDS = 300.0
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Contender:
    """One way to move a backlog: a name, how much of it, and the command that moves it."""

    name: str
    events: int
    module: str
    arguments: tuple[str, ...]

    def table(self) -> str:
        return f"benchmark.{self.name}"


def contenders(project: str, ours: int, textbook: int) -> list[Contender]:
    subscription = f"projects/{project}/subscriptions/"
    return [
        Contender(
            "textbook",
            textbook,
            "tests.benchmarks.textbook_job",
            (project, f"{subscription}textbook", f"{project}:benchmark.textbook"),
        ),
        Contender(
            "ours",
            ours,
            "pipeline.user_signin",
            (
                f"--project={project}",
                f"--input_subscription={subscription}ours",
                "--output_table=benchmark.ours",
                "--dead_letter_table=benchmark.ours_dead_letters",
            ),
        ),
    ]


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


def rate(client: object, contender: Contender, job: subprocess.Popen[bytes]) -> float:
    """Rows a second, from the first rows seen to the last."""
    query = f"SELECT COUNT(*) AS n FROM `{contender.table()}`"
    first: tuple[float, int] | None = None
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if job.poll() is not None:
            raise SystemExit(f"{contender.name} ended with {job.returncode}")
        count = next(iter(client.query(query, timeout=30).result(timeout=30)))["n"]
        now = time.monotonic()
        if count and first is None:
            first = now, count
        if count >= contender.events:
            seconds, rows = now - first[0], count - first[1]
            if not rows:
                raise SystemExit(f"{contender.name}: all rows came at once; give it more events")
            return rows / seconds
        time.sleep(POLL_SECONDS)
    raise SystemExit(f"{contender.name} moved {count} of {contender.events} in {DEADLINE_SECONDS:g} s")


async def measure(contender: Contender, stack: Stack, project: str, log: Path) -> float:
    environment = stack.environment
    topic = f"projects/{project}/topics/{contender.name}"
    pubsub = environment["PUBSUB_EMULATOR_HOST"]
    await ensure_subscription(pubsub, topic, f"projects/{project}/subscriptions/{contender.name}")
    client = bigquery_tables.client(project, environment["BIGQUERY_EMULATOR_HOST"])
    tables = [parse_table(f"{contender.table()}{suffix}", project) for suffix in ("", "_dead_letters")]
    bigquery_tables.ensure_tables(client, *tables)
    publish(pubsub, topic, contender.events)
    return await asyncio.to_thread(run_job, contender, client, environment, log)


def run_job(contender: Contender, client: object, environment: dict[str, str], log: Path) -> float:
    with log.open("wb") as stderr:
        job = subprocess.Popen(
            [sys.executable, "-m", contender.module, *contender.arguments],
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        try:
            return rate(client, contender, job)
        except SystemExit:
            print(log.read_text()[-2000:], file=sys.stderr)
            raise
        finally:
            job.kill()
            job.wait()


async def run(arguments: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="signin-benchmark-") as directory:
        settings = local_settings(standalone_settings({"data_dir": Path(directory)}))
        stack = Stack(settings)
        await stack.start()
        try:
            rates = {}
            for contender in contenders(settings.project, arguments.events, arguments.textbook_events):
                rates[contender.name] = await measure(
                    contender, stack, settings.project, Path(directory) / f"{contender.name}.log"
                )
                print(f"{contender.name:<10}{rates[contender.name]:>12,.0f} events/s", flush=True)
            return rates
        finally:
            await stack.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=100_000, help="backlog of our job")
    parser.add_argument("--textbook-events", type=int, default=2_000, help="backlog of the textbook pair")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    rates = asyncio.run(run(arguments))
    ratio = rates["ours"] / rates["textbook"]
    print(f"{'ratio':<10}{ratio:>12,.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rates | {"ratio": ratio}, indent=2))


if __name__ == "__main__":
    main()
