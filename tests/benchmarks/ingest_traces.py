"""What traces cost a sign-in: switched off, one of a hundred sampled, all of them.

`python -m tests.benchmarks.ingest_traces [--before DIRECTORY] [--seconds S] [--rounds N] [--json FILE]`. The
contenders take turns as in `ingest`, and each ratio is the median of the rounds' own ratios. `--before` names
the source tree of an earlier version (`git worktree add DIRECTORY COMMIT`): what it took to send a sign-in
before there were traces. Pub/Sub and the receiver of the spans take everything and keep nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.benchmarks import ingest_load
from tests.benchmarks.ingest import BODY, WARM_UP_SECONDS, Round, median, plan_for, summed
from tests.server_process import Server, service

NAMES = ("requests_per_second", "cpu_us_per_request", "p50_ms", "p99_ms")
Figures = dict[str, Any]


def contenders(before: Path | None, receiver: str) -> dict[str, dict[str, str]]:
    """The variables of each; the first one is what the others are compared with."""
    on = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver, "OTEL_METRICS_EXPORTER": "none"}
    hundredth = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
    earlier = {"before": {"PYTHONPATH": str(before.absolute())}} if before else {}
    return {**earlier, "off": {}, "1 of 100": on | hundredth, "all": on}


def measure(servers: dict[str, Server], seconds: float, rounds: int) -> Figures:
    for server in servers.values():
        ingest_load.run(plan_for(server, BODY, WARM_UP_SECONDS))
    seen: dict[str, list[Figures]] = {name: [] for name in servers}
    order = list(servers)
    first = order[0]
    for _ in range(rounds):
        for name in order:
            seen[name].append(Round(servers[name], plan_for(servers[name], BODY, seconds)).figures())
        order.reverse()
    figures: Figures = {}
    for name, found in seen.items():
        figures[name] = {each: median(found, each) for each in NAMES} | {"statuses": summed(found)}
        figures[name]["ratios"] = {
            each: statistics.median(
                mine[each] / theirs[each] for mine, theirs in zip(found, seen[first], strict=True)
            )
            for each in NAMES
        }
        print_figures(name, first, figures[name])
    return figures


def print_figures(name: str, first: str, found: Figures) -> None:
    rate, cpu = found["ratios"]["requests_per_second"], found["ratios"]["cpu_us_per_request"]
    print(
        f"{name:<10}{found['requests_per_second']:>8,.0f} requests/s ({rate:.2f} of {first})  "
        f"{found['cpu_us_per_request']:5.0f} µs of CPU each ({cpu:.2f})  "
        f"p50 {found['p50_ms']:5.1f} ms  p99 {found['p99_ms']:5.1f} ms  {found['statuses']}",
        flush=True,
    )


def run(arguments: argparse.Namespace, directory: Path) -> Figures:
    module = "tests.benchmarks.ingest_servers"
    with ExitStack() as stack:
        pubsub = stack.enter_context(Server(module, "sink", directory=directory))
        receiver = stack.enter_context(Server(module, "receiver", directory=directory))
        servers = {}
        for number, (name, values) in enumerate(contenders(arguments.before, receiver.address).items()):
            own = directory / str(number)
            own.mkdir()
            servers[name] = stack.enter_context(service(own, pubsub.address, **values))
        return measure(servers, arguments.seconds, arguments.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="source tree of an earlier version")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one round")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="signin-traces-") as directory:
        figures = run(arguments, Path(directory))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
