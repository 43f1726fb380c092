"""How long `signin serve` takes until it answers, beside the bare import of the libraries it is made of.

`python -m tests.benchmarks.start_time [--rounds N]`. Bytecode is compiled first, as an installation does.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NOBODY = "127.0.0.1:1"
BASELINE = "import fastapi, uvicorn, sqlalchemy.ext.asyncio, sqlmodel, pydantic_settings, typer, msgspec"


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PUBSUB_EMULATOR_HOST": NOBODY, "DATAFLOW_EMULATOR_HOST": NOBODY}


def import_seconds() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", BASELINE], env=environment(), check=True)
    return time.perf_counter() - started


def serve_seconds(directory: Path) -> float:
    """From the start of the process to the line that says it answers."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--announce", "--port", "0"],
        cwd=directory,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    seconds = time.perf_counter() - started
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    process.stdout.close()
    if b"ready" not in line:
        raise SystemExit("the service did not start")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="signin-benchmark-") as directory:
        serve_seconds(Path(directory))  # writes bytecode and makes the database
        pairs = [(import_seconds(), serve_seconds(Path(directory))) for _ in range(rounds)]
    imports = statistics.median(pair[0] for pair in pairs)
    serve = statistics.median(pair[1] for pair in pairs)
    print(f"bare imports   {imports:6.2f} s")
    print(f"signin serve   {serve:6.2f} s")
    print(f"ratio          {serve / imports:6.2f}")


if __name__ == "__main__":
    main()
