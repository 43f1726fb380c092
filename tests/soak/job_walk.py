"""A long random walk of job control: `python -m tests.soak.job_walk [--steps 20000] [--seed 1]`.

Clients, Dataflow, faults and crashes act by chance; after every step the laws of tests/job_laws.py are held.
A broken law ends it with the seed and the step, which lead to it again. `--database-url` takes a migrated,
empty database; the default is SQLite.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import Counter
from pathlib import Path

from service.config import Settings
from service.db import migrate
from tests.job_walk import walking

LEG_STEPS = 1000  # each leg begins with an empty Dataflow, and a seed of its own


async def leg(directory: Path, database_url: str, seed: int, steps: int) -> Counter[str]:
    async with walking(directory, database_url, seed) as walk:
        try:
            await walk.run(steps)
        except BaseException:
            print(f"seed {seed}, step {sum(walk.steps.values())}: {dict(walk.steps)}")
            raise
        counts = Counter(walk.steps)
        counts["(crashes)"] = walk.crashes
        counts["(Dataflow jobs)"] = len(walk.fleet.launched)
        return counts


def run(steps: int, seed: int, database_url: str = "") -> Counter[str]:
    """The steps in legs. Raises AssertionError where a law is broken."""
    counts: Counter[str] = Counter()
    for number, start in enumerate(range(0, steps, LEG_STEPS)):
        with tempfile.TemporaryDirectory(prefix="signin-job-walk-") as name:
            url = database_url or f"sqlite:///{name}/walk.db"
            migrate(Settings(_env_file=None, database_url=url))
            part = min(LEG_STEPS, steps - start)
            counts += asyncio.run(leg(Path(name), url, seed + number, part))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database-url", default="", help="a migrated, empty database; default SQLite")
    arguments = parser.parse_args()
    started = time.monotonic()
    counts = run(arguments.steps, arguments.seed, arguments.database_url)
    steps = sum(count for name, count in counts.items() if not name.startswith("("))
    for name, count in sorted(counts.items()):
        print(f"{count:>7,} {name}")
    print(f"{steps:,} steps in {time.monotonic() - started:.0f} s: no law was broken")


if __name__ == "__main__":
    main()
