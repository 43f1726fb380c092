"""Thousands of events become dead letters; the cause is mended; a replay makes each of them one row.

`python -m tests.soak.replay_letters [--events 10000]`. BigQuery refuses the rows at first. While the replay
works the service is killed once with SIGKILL, and the next one goes on. The dry run before it must have said
the same numbers.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from service.dead_letters import replay_store
from tests.bigquery_servers import local_bigquery, set_faults
from tests.server_process import Server, local_pubsub, service
from tests.soak.job_kills import Tables, job, make_topic, publish, until_running

WAIT_SECONDS = 100.0
REFUSAL = {"method": "insertAll", "refuse": "event-"}
NUMBERS = ("letters", "read", "replayed", "repeated", "unreplayable")


@dataclass(frozen=True)
class Outcome:
    """What a run showed; the counts of rows and letters are those at the end."""

    events: int
    dry: dict[str, Any]
    real: dict[str, Any]
    rows: int
    different: int
    letters: int

    def holds(self) -> bool:
        numbers = {"letters": self.events, "read": self.events, "replayed": self.events}
        numbers |= {"repeated": 0, "unreplayable": 0}
        found = (self.rows, self.different, self.letters)
        return self.dry == self.real == numbers and found == (self.events,) * 3

    def summary(self) -> str:
        return (
            f"{self.events:,} events became {self.letters:,} dead letters; "
            f"dry run {self.dry}; replay {self.real}; "
            f"{self.rows:,} rows of {self.different:,} different events"
        )


class Client:
    """Asks the service over HTTP."""

    def __init__(self, server: Server) -> None:
        self._url = f"http://127.0.0.1:{server.port}"

    def get(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(self._url + path, timeout=60).raise_for_status().json()
        return found

    def begin(self, **body: Any) -> str:
        """Begins a replay; returns its path."""
        answer = httpx.post(f"{self._url}/dead-letters/replay", json={"stage": "write"} | body, timeout=60)
        return answer.raise_for_status().headers["Location"]

    def letters(self) -> int:
        try:
            return sum(each["count"] for each in self.get("/dead-letters?page_size=1")["counts"])
        except httpx.HTTPStatusError as error:
            if error.response.status_code == 404:  # the job has not made the table yet
                return 0
            raise


def wait(condition: Callable[[], Any], what: str) -> Any:
    """Polls until the condition is true; returns what it returned. Raises SystemExit."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {WAIT_SECONDS:g} s: {what}")
        time.sleep(0.1)
    return found


def run(directory: Path, events: int, *, database_url: str = "", quiet: bool = False) -> Outcome:
    """Raises SystemExit where something does not come in time."""

    def say(text: str) -> None:
        if not quiet:
            print(text, flush=True)

    with local_pubsub(directory) as pubsub, local_bigquery(directory) as bigquery:
        make_topic(pubsub.address)
        tables = Tables(bigquery)

        def serve() -> Server:
            return service(
                directory, pubsub.address, database_url=database_url, BIGQUERY_EMULATOR_HOST=bigquery
            )

        with job(directory, pubsub.address, bigquery) as process:
            until_running(directory, 1, process)
            set_faults(bigquery, REFUSAL)
            publish(pubsub.address, 0, events)
            with serve() as first:
                client = Client(first)
                wait(lambda: client.letters() == events, f"{events} dead letters")
                set_faults(bigquery)
                say(f"{events:,} events are dead letters, and the cause is mended")
                dry = client.begin(dry_run=True)
                dry_found = wait(lambda: ended(client.get(dry)), "the end of the dry run")
                path = client.begin()
                wait(lambda: client.get(path)["replayed"] > 0, "the first letters")
                first.kill()
            with serve() as second:
                client = Client(second)
                say(f"the service was killed at {client.get(path)['read']:,} letters")
                found = wait(lambda: ended(client.get(path)), "the end of the replay")
                wait(lambda: tables.count()[1] == events, f"{events} rows")
                second.stop()
            process.terminate()
            process.wait(WAIT_SECONDS)
        rows, different = tables.count()
        letters = tables.count("dead_letters")[0]
        tables.close()
    picked = [{name: each[name] for name in NUMBERS} for each in (dry_found, found)]
    return Outcome(events, *picked, rows, different, letters)


def ended(replay: dict[str, Any]) -> dict[str, Any] | None:
    if replay["state"] in (replay_store.FAILED, replay_store.CANCELLED):
        raise SystemExit(f"the replay is {replay['state']}: {replay['cause']}")
    return replay if replay["state"] == replay_store.DONE else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--database-url", default="", help="a migrated database; default SQLite")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="signin-replay-") as directory:
        outcome = run(Path(directory), arguments.events, database_url=arguments.database_url)
    print(outcome.summary())
    if not outcome.holds():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
