"""Requests by the thousand, right and wrong ones made from our OpenAPI document, and every answer judged.

`python -m tests.soak.interface [--examples 5] [--seed 1] [--phases examples,coverage,fuzzing,stateful]
[--max-time SECONDS] [--door key]`. schemathesis plays the caller, with all of its checks, against a service
of its own on the local stack: with a key that allows everything, with no key, and with no key where none is
wanted, as on loopback.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bigquery_servers import PROJECT, local_bigquery
from tests.dead_letter_world import letter
from tests.pubsub_topic import make_topic
from tests.running import clean_environment
from tests.server_process import REPOSITORY, Server, local_pubsub, service
from transforms import bigquery_tables
from transforms.bigquery_rows import TableRef

SCHEMATHESIS = "schemathesis==4.32.5"
CONFIGURATION = REPOSITORY / "tests" / "soak" / "schemathesis.toml"
HOOKS = CONFIGURATION.with_name("schemathesis_hooks.py")
PHASES = "examples,coverage,fuzzing,stateful"
DOORS = ("key", "none", "open")
LETTERS = 30
_TEMPLATE = "gs://signin-tests/waiting.json"


@dataclass(frozen=True)
class Bound:
    """How much is asked: `examples` for each route and phase, the same ones for the same `seed`."""

    examples: int = 5
    seed: int = 1
    phases: str = PHASES
    max_seconds: int | None = None


@contextmanager
def served(directory: Path, **values: str) -> Iterator[Server]:
    """The service beside a Pub/Sub, a Dataflow whose jobs only wait, and a BigQuery with dead letters."""
    template = f"{_TEMPLATE}=tests.waiting_job"
    dataflow = Server(
        "service.local.dataflow",
        "--data-dir",
        str(directory / "dataflow"),
        "--template",
        template,
        directory=directory,
    )
    with ExitStack() as stack:
        pubsub = stack.enter_context(local_pubsub(directory))
        make_topic(pubsub.address)
        bigquery = stack.enter_context(local_bigquery(directory))
        _add_letters(bigquery)
        values |= {
            "DATAFLOW_EMULATOR_HOST": stack.enter_context(dataflow).address,
            "BIGQUERY_EMULATOR_HOST": bigquery,
            "SIGNIN_TEMPLATE_PATH": _TEMPLATE,
            "SIGNIN_RECONCILE_INTERVAL_SECONDS": "0.5",
            "SIGNIN_CONTROL_REQUESTS_PER_SECOND": "5000",
            "SIGNIN_BATCH_REQUESTS_PER_SECOND": "5000",
        }
        yield stack.enter_context(service(directory, pubsub.address, **values))


def _add_letters(url: str) -> None:
    client = bigquery_tables.client(PROJECT, url)
    letters = TableRef(PROJECT, "user_signin", "dead_letters")
    bigquery_tables.ensure_tables(client, TableRef(PROJECT, "user_signin", "signins"), letters)
    rows = [letter(number) for number in range(LETTERS)]
    assert client.insert_rows_json(str(letters), rows, timeout=30) == []
    client.close()


def new_key(directory: Path) -> str:
    """A key that allows everything, made as a user makes it."""
    made = subprocess.run(
        [sys.executable, "-m", "service", "keys", "create", "caller", "--scope", "admin", "--json"],
        cwd=directory,
        env=clean_environment() | {"PYTHONPATH": str(REPOSITORY)},
        check=True,
        capture_output=True,
        text=True,
    )
    return str(json.loads(made.stdout)["key"])


def newest_release() -> str:
    """The date that bounds what is installed beside schemathesis, as it does everything else here."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    return str(project["tool"]["uv"]["exclude-newer"])


def ask(url: str, bound: Bound, options: Sequence[str]) -> tuple[int, str]:
    """Runs schemathesis; its exit code, which is not 0 where it found anything, and its report."""
    command = [os.environ.get("UV", "uv"), "tool", "run", "--quiet", "--python", "3.11"]
    command += ["--exclude-newer", newest_release(), "--from", SCHEMATHESIS, "schemathesis"]
    command += ["--config-file", str(CONFIGURATION), "run", f"{url}/openapi.json"]
    command += ["--checks", "all", "--phases", bound.phases, "--max-examples", str(bound.examples)]
    command += ["--seed", str(bound.seed), "--no-color", *options]
    command += ["--max-time", str(bound.max_seconds)] if bound.max_seconds else []
    environment = clean_environment() | {"SCHEMATHESIS_HOOKS": str(HOOKS)}
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            command, cwd=directory, env=environment, check=False, capture_output=True, text=True
        )
    return done.returncode, done.stdout + done.stderr


def check(bound: Bound, door: str) -> tuple[int, str]:
    """One run against a service of its own, as `ask`; `door` is one of `DOORS`."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        options: list[str] = []
        if door == "key":
            options = ["--header", f"Authorization: Bearer {new_key(path)}"]
        if door == "open":  # where anybody may do everything, a missing key is no reason to refuse
            options = ["--exclude-checks", "ignored_auth"]
        with served(path, SIGNIN_REQUIRE_AUTHENTICATION=str(door != "open").lower()) as server:
            return ask(f"http://127.0.0.1:{server.port}", bound, options)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each run, and the whole report where anything was found; then ends with 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--phases", default=PHASES)
    parser.add_argument("--max-time", type=int, default=None)
    parser.add_argument("--door", choices=DOORS, action="append")
    options = parser.parse_args(arguments)
    bound = Bound(options.examples, options.seed, options.phases, options.max_time)
    worst = 0
    for door in options.door or DOORS:
        started = time.monotonic()
        code, report = check(bound, door)
        cases = re.search(r"([0-9]+) generated.*", report)
        if code:
            print(report)
        print(f"{door}: {cases[0] if cases else report}, {time.monotonic() - started:.0f} s")
        worst = max(worst, code)
    raise SystemExit(worst)


if __name__ == "__main__":
    main()
