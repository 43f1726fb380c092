"""Requests by the thousand, right and wrong ones made from our OpenAPI document, and every answer judged.

`python -m tests.soak.interface [--examples 5] [--seed 1] [--phases examples,coverage,fuzzing,stateful]
[--max-time SECONDS] [--without-keys]`. schemathesis plays the caller, with all of its checks, against a
service of its own on the local stack. With keys the door is shut and the caller holds an `admin` key;
without, the service is open as it is on loopback.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
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
    command = ["uv", "run", "--project", str(REPOSITORY), "signin", "keys", "create", "caller"]
    made = subprocess.run(
        [*command, "--scope", "admin", "--json"],
        cwd=directory,
        env=clean_environment(),
        check=True,
        capture_output=True,
        text=True,
    )
    return str(json.loads(made.stdout)["key"])


def ask(url: str, bound: Bound, key: str | None = None) -> tuple[int, str]:
    """Runs schemathesis; its exit code, which is not 0 where it found anything, and its report."""
    command = ["uv", "tool", "run", "--quiet", "--python", "3.11", "--from", SCHEMATHESIS, "schemathesis"]
    command += ["--config-file", str(CONFIGURATION), "run", f"{url}/openapi.json"]
    command += ["--checks", "all", "--phases", bound.phases, "--max-examples", str(bound.examples)]
    command += ["--seed", str(bound.seed), "--generation-deterministic", "--no-color"]
    command += ["--max-time", str(bound.max_seconds)] if bound.max_seconds else []
    command += ["--header", f"Authorization: Bearer {key}"] if key else []
    environment = clean_environment() | {"SCHEMATHESIS_HOOKS": str(HOOKS)}
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            command, cwd=directory, env=environment, check=False, capture_output=True, text=True
        )
    return done.returncode, done.stdout + done.stderr


def check(bound: Bound, *, with_keys: bool) -> tuple[int, str]:
    """One run against a service of its own; as `ask`."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        key = new_key(path) if with_keys else None
        with served(path, SIGNIN_REQUIRE_AUTHENTICATION=str(with_keys).lower()) as server:
            code, report = ask(f"http://127.0.0.1:{server.port}", bound, key)
    return code, report


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the reports; ends with 1 where anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--phases", default=PHASES)
    parser.add_argument("--max-time", type=int, default=None)
    parser.add_argument("--without-keys", action="store_true", help="only that half")
    parser.add_argument("--with-keys", action="store_true", help="only that half")
    options = parser.parse_args(arguments)
    bound = Bound(options.examples, options.seed, options.phases, options.max_time)
    both = options.with_keys == options.without_keys
    worst = 0
    for with_keys in [True, False] if both else [options.with_keys]:
        started = time.monotonic()
        code, report = check(bound, with_keys=with_keys)
        print(report)
        print(f"with keys: {with_keys}; exit code {code}; {time.monotonic() - started:.0f} s\n")
        worst = max(worst, code)
    raise SystemExit(worst)


if __name__ == "__main__":
    main()
