"""How fast sign-ins are taken: ours beside a route that does nothing and beside the plain approach.

`python -m tests.benchmarks.ingest [--seconds S] [--rounds N] [--pubsub local|sink] [--json FILE]`. The
contenders take turns in short rounds, so that whatever else the machine does hits all of them, and
each ratio is the median of the rounds' own ratios. The load comes from one process of ours (64
connections), Pub/Sub is a process of its own: with two cores, three processes share them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks import ingest_load, ingest_outage
from tests.benchmarks.ingest_load import Plan, Samples, request_bytes
from tests.benchmarks.ingest_servers import PATH
from tests.pubsub_topic import forget_all, make_topic, publish_once
from tests.server_process import Server, local_pubsub, service

BODY = b'{"userid": "93234234", "date": "2017-10-17T20:57:17.338320"}'
CONNECTIONS = 64
BATCH = 500
WARM_UP_SECONDS = 1.5
PARTS = ("single", "batch", "alone", "outage")
Figures = dict[str, Any]


class Round:
    """One contender's turn: its samples, and the CPU time that its server used meanwhile."""

    def __init__(self, server: Server, plan: Plan) -> None:
        before = server.cpu_seconds()
        self.samples: Samples = ingest_load.run(plan)
        self.cpu_seconds = server.cpu_seconds() - before

    def figures(self) -> Figures:
        good = max(self.samples.good(), 1)
        return {
            "requests_per_second": self.samples.rate(),
            "p50_ms": self.samples.percentile_ms(50),
            "p99_ms": self.samples.percentile_ms(99),
            "cpu_us_per_request": self.cpu_seconds / good * 1e6,
            "statuses": self.samples.statuses(),
        }


def plan_for(
    server: Server, body: bytes, seconds: float, connections: int = CONNECTIONS, path: str = PATH
) -> Plan:
    return Plan("127.0.0.1", server.port, request_bytes(path, body), connections, seconds)


def median(rounds: list[Figures], name: str) -> float:
    return statistics.median(each[name] for each in rounds)


def summed(rounds: list[Figures]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in rounds:
        for status, count in each["statuses"].items():
            total[status] = total.get(status, 0) + count
    return total


def measure_single(servers: dict[str, Server], seconds: float, rounds: int) -> Figures:
    """Requests a second, latency and CPU of each contender, and ours against the others."""
    for server in servers.values():
        ingest_load.run(plan_for(server, BODY, WARM_UP_SECONDS))
    seen: dict[str, list[Figures]] = {name: [] for name in servers}
    order = list(servers)
    for _ in range(rounds):
        for name in order:
            seen[name].append(Round(servers[name], plan_for(servers[name], BODY, seconds)).figures())
        order.reverse()  # nobody always comes right after the heaviest
    names = ("requests_per_second", "p50_ms", "p99_ms", "cpu_us_per_request")
    figures: Figures = {
        name: {each: median(found, each) for each in names} | {"statuses": summed(found)}
        for name, found in seen.items()
    }
    for name, figure in figures.items():
        print(
            f"{name:<8}{figure['requests_per_second']:>9,.0f} requests/s   p50 {figure['p50_ms']:6.1f} ms   "
            f"p99 {figure['p99_ms']:6.1f} ms   {figure['cpu_us_per_request']:5.0f} µs of CPU each   "
            f"{figure['statuses']}",
            flush=True,
        )

    def ratio(name: str, other: str) -> float:
        return statistics.median(
            ours[name] / theirs[name] for ours, theirs in zip(seen["ours"], seen[other], strict=True)
        )

    figures["ratios"] = {
        f"{name}, ours to {other}": ratio(name, other)
        for name in names
        for other in servers
        if other != "ours"
    }
    bounds = {
        "requests_per_second, ours to bare": ">= 0.85",
        "requests_per_second, ours to plain": ">= 4",
        "p99_ms, ours to bare": "<= 1.5",
    }
    for name, value in figures["ratios"].items():
        print(f"  {name:<40}{value:6.2f}   {bounds.get(name, '')}", flush=True)
    return figures


def measure_batch(server: Server, seconds: float, rounds: int) -> Figures:
    """Events a second in batches of 500, as one JSON array and as NDJSON, four callers."""
    event = b'{"userid": "user-%04d", "date": "2017-10-17T20:57:17.338320Z"}'
    events = [event % number for number in range(BATCH)]
    figures: Figures = {}
    for name, body, content_type in (
        ("json", b"[" + b",".join(events) + b"]", "application/json"),
        ("ndjson", b"\n".join(events), "application/x-ndjson"),
    ):
        request = request_bytes(f"{PATH}/batch", body, content_type)
        plan = Plan("127.0.0.1", server.port, request, 4, seconds)
        found = [Round(server, plan).figures() for _ in range(rounds)]
        rate = median(found, "requests_per_second") * BATCH
        cpu = median(found, "cpu_us_per_request") / BATCH
        figures[name] = {
            "events_per_second": rate,
            "cpu_us_per_event": cpu,
            "events_per_cpu_second": 1e6 / cpu,
            "p99_ms": median(found, "p99_ms"),
            "statuses": summed(found),
        }
        print(
            f"batches of {BATCH}, {name:<6}{rate:>9,.0f} events/s  {1e6 / cpu:>9,.0f} a CPU s (>= 60,000)  "
            f"p99 {figures[name]['p99_ms']:.1f} ms   {figures[name]['statuses']}",
            flush=True,
        )
    return figures


def measure_alone(server: Server, pubsub: Server, seconds: float) -> Figures:
    """One caller, beside the bare round trip of a Publish from a process that does nothing else."""
    samples = ingest_load.run(plan_for(server, BODY, seconds, connections=1))
    took: list[float] = []
    until = time.monotonic() + seconds
    with publish_once(pubsub.address) as publish:
        publish(BODY)
        while time.monotonic() < until:
            before = time.perf_counter()
            publish(BODY)
            took.append(time.perf_counter() - before)
    bare = ingest_load.percentile(sorted(took), 50) * 1000
    ours = samples.percentile_ms(50)
    print(
        f"one caller: p50 {ours:.2f} ms, a bare Publish {bare:.2f} ms, {ours - bare:+.2f} ms (<= 5)",
        flush=True,
    )
    return {
        "p50_ms": ours,
        "p99_ms": samples.percentile_ms(99),
        "bare_publish_p50_ms": bare,
        "above_ms": ours - bare,
    }


def run(arguments: argparse.Namespace, directory: Path) -> Figures:
    figures: Figures = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "pubsub": arguments.pubsub,
        "workers": arguments.workers,
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
    }
    module = "tests.benchmarks.ingest_servers"
    sink = Server(module, "sink", directory=directory)
    with sink if arguments.pubsub == "sink" else local_pubsub(directory) as pubsub:
        if arguments.pubsub == "local":
            make_topic(pubsub.address)
        environment = {"PUBSUB_EMULATOR_HOST": pubsub.address}
        with service(
            directory, pubsub.address, workers=arguments.workers, database_url=arguments.database_url
        ) as ours:
            if "single" in arguments.parts:
                names = ("bare", "typed", "plain")
                servers = {n: Server(module, n, directory=directory, environment=environment) for n in names}
                try:
                    started = {name: server.start() for name, server in servers.items()}
                    figures["single"] = measure_single(
                        {"bare": started.pop("bare"), "ours": ours, **started},
                        arguments.seconds,
                        arguments.rounds,
                    )
                finally:
                    for server in servers.values():
                        server.kill()
            parts: dict[str, Callable[[], Figures]] = {
                "batch": lambda: measure_batch(ours, arguments.seconds, arguments.rounds),
                "alone": lambda: measure_alone(ours, pubsub, arguments.seconds),
            }
            for name in (each for each in arguments.parts if each in parts):
                if arguments.pubsub == "local":
                    forget_all(pubsub.address)
                figures[name] = parts[name]()
    if "outage" in arguments.parts:
        figures["outage"] = ingest_outage.measure(
            directory,
            arguments.modes,
            arguments.outage_seconds,
            arguments.database_url,
            arguments.workers,
            BODY,
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one round")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--outage-seconds", type=float, default=10.0, help="length of each outage")
    parser.add_argument("--workers", type=int, default=1, help="processes of the service")
    parser.add_argument("--pubsub", choices=("local", "sink"), default="local", help="who gives the ids")
    parser.add_argument("--database-url", default="", help="metadata database; default SQLite")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument(
        "--modes", nargs="+", choices=tuple(ingest_outage.MODES), default=list(ingest_outage.MODES)
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="signin-ingest-") as directory:
        figures = run(arguments, Path(directory))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
