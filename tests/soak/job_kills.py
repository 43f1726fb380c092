"""Kills the job with SIGKILL while it writes, again and again, and counts what is in the table.

`python -m tests.soak.job_kills [--kills 20] [--events 100000]`. Every second kill comes shortly after the job
runs, the others shortly after its first rows. At the end every event that was published must be in the table
at least once, and in the view without copies exactly once.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.pubsub_v1 import types

from tests.bigquery_servers import PROJECT, local_bigquery
from tests.pubsub_topic import SUBSCRIPTION, call
from tests.running import TOPIC, clean_environment
from tests.server_process import REPOSITORY, local_pubsub
from transforms import bigquery_tables

FIRST_ROWS_SECONDS = 60.0
FINISH_SECONDS = 120.0
DRAIN_SECONDS = 30.0
# From then on; a run of 5,000 events takes about as long.
LONGEST_SECONDS = 0.5
DATE = "2026-01-02T03:04:05.000006Z"
COUNT = "SELECT COUNT(*) AS n, COUNT(DISTINCT event_id) AS ids FROM user_signin."


@dataclass(frozen=True)
class Tally:
    """What was published and what the table and the view have of it."""

    published: int
    kills: int
    rows: int
    different: int
    view_rows: int
    view_different: int

    def holds(self) -> bool:
        return (self.different, self.view_rows, self.view_different) == (self.published,) * 3

    def summary(self) -> str:
        return (
            f"{self.published:,} published, {self.kills} kills: {self.different:,} of them in the table, "
            f"{self.rows - self.different:,} further copies; "
            f"{self.view_rows:,} rows in the view, {self.view_different:,} different"
        )


class Tables:
    """The table of sign-ins and the view without copies."""

    def __init__(self, url: str) -> None:
        self._client: Any = bigquery_tables.client(PROJECT, url)

    def count(self, name: str = "signins") -> tuple[int, int]:
        """Rows and different event ids; none where the job has not made the table yet."""
        from google.api_core.exceptions import NotFound

        try:
            (row,) = self._client.query(COUNT + name, job_retry=None).result(timeout=30)
        except NotFound:
            return 0, 0
        return row["n"], row["ids"]

    def close(self) -> None:
        self._client.close()


def publish(address: str, first: int, count: int) -> None:
    """Publishes the events `first` to `first + count - 1`, with the attribute for the deduplication."""
    request, message = types.PublishRequest.pb(), types.PubsubMessage.pb()
    with grpc.insecure_channel(address) as channel:
        stub = channel.unary_unary(
            "/google.pubsub.v1.Publisher/Publish",
            request.SerializeToString,
            types.PublishResponse.pb().FromString,
        )
        for start in range(first, first + count, 1000):
            names = [f"event-{number}" for number in range(start, min(start + 1000, first + count))]
            messages = [
                message(
                    data=f'{{"userid": "u", "date": "{DATE}", "event_id": "{name}"}}'.encode(),
                    attributes={"event_id": name},
                )
                for name in names
            ]
            stub(request(topic=TOPIC, messages=messages), timeout=30)


@contextmanager
def job(directory: Path, pubsub: str, bigquery: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the job; whatever happens it is gone at the end of the block."""
    environment = clean_environment() | {
        "PYTHONPATH": str(REPOSITORY),
        "PUBSUB_EMULATOR_HOST": pubsub,
        "BIGQUERY_EMULATOR_HOST": bigquery,
    }
    with (directory / "job.log").open("ab") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "service.local.lifeline", "pipeline.user_signin"),
                *("--project", PROJECT, "--input_subscription", SUBSCRIPTION),
            ],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdin
        process.stdin.close()


def until_rows(tables: Tables, more_than: int, process: subprocess.Popen[bytes]) -> None:
    """Returns when the table has more rows. Raises SystemExit where it does not in time."""
    deadline = time.monotonic() + FIRST_ROWS_SECONDS
    while tables.count()[0] <= more_than:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"no rows came; the job's exit code is {process.poll()}")
        time.sleep(0.02)


def until_running(directory: Path, runs: int, process: subprocess.Popen[bytes]) -> None:
    """Returns when the job has said for the `runs`th time that it runs. Raises SystemExit."""
    deadline = time.monotonic() + FIRST_ROWS_SECONDS
    while (directory / "job.log").read_bytes().count(b'"RUNNING"') < runs:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit((directory / "job.log").read_text()[-2000:])
        time.sleep(0.02)


def make_topic(address: str) -> None:
    """The topic, and a subscription whose messages come again ten seconds after a kill."""
    topic, subscription = types.Topic.pb(), types.Subscription.pb()
    call(address, "Publisher", "CreateTopic", topic(name=TOPIC), topic)
    asked = subscription(name=SUBSCRIPTION, topic=TOPIC, ack_deadline_seconds=10)
    call(address, "Subscriber", "CreateSubscription", asked, subscription)


def run(directory: Path, kills: int, events: int, *, seed: int = 1, quiet: bool = False) -> Tally:
    """Publishes a part of the events, lets the job write some of it, kills it; then lets one finish.

    Raises SystemExit where the job stops working.
    """
    chance = random.Random(seed)
    published = 0
    with local_pubsub(directory) as pubsub, local_bigquery(directory) as bigquery:
        make_topic(pubsub.address)
        tables = Tables(bigquery)
        try:
            for number in range(kills):
                share = events * (number + 1) // kills - published
                publish(pubsub.address, published, share)
                published += share
                before = tables.count()[0]
                with job(directory, pubsub.address, bigquery) as process:
                    until_running(directory, number + 1, process)
                    if number % 2:
                        until_rows(tables, before, process)
                    time.sleep(chance.uniform(0, LONGEST_SECONDS))
                    process.kill()
                    process.wait()
                if not quiet:
                    rows, different = tables.count()
                    print(
                        f"kill {number + 1:>3}: {published:,} published, {rows:,} rows, "
                        f"{different:,} different",
                        flush=True,
                    )
            with job(directory, pubsub.address, bigquery) as process:
                until_running(directory, kills + 1, process)
                finish(tables, published, process)
            return Tally(published, kills, *tables.count(), *tables.count("signins_deduplicated"))
        finally:
            tables.close()


def finish(tables: Tables, events: int, process: subprocess.Popen[bytes]) -> None:
    """Waits until every event is there and drains the job. Raises SystemExit where it does not end well."""
    deadline = time.monotonic() + FINISH_SECONDS
    while tables.count()[1] < events:
        if process.poll() is not None:
            raise SystemExit(f"the job ended with {process.returncode}")
        if time.monotonic() > deadline:
            return  # the tally tells what is missing
        time.sleep(0.1)
    process.terminate()
    if code := process.wait(DRAIN_SECONDS):
        raise SystemExit(f"the drained job ended with {code}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1, help="decides when each job is killed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="signin-job-kills-") as directory:
        tally = run(Path(directory), arguments.kills, arguments.events, seed=arguments.seed)
    print(tally.summary())
    if not tally.holds():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
