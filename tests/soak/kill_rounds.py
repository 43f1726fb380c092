"""Kills the service with SIGKILL under load, again and again, and counts whether a promise was broken.

`python -m tests.soak.kill_rounds [--rounds 50] [--database postgresql] [--workers N]`. Every second round
Pub/Sub is unavailable. At the end, with everything healthy, each event that was answered with 2xx must
be in the topic at least once, and every copy of it under the event id that the answer named.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from service.local.faults import Fault, set_faults
from tests.outbox_table import waiting_rows
from tests.postgres import database_of
from tests.pubsub_topic import make_topic, pull_all
from tests.server_process import Server, local_pubsub, service

CALLERS = 32
LEAST_ANSWERS = 100
SHORTEST_SECONDS, LONGEST_SECONDS = 0.2, 1.5
DEADLINE_SECONDS = 30.0
DRAIN_SECONDS = 120.0
DATE = "2017-10-17T20:57:17.338320Z"
OUTAGE = Fault(method="Publish", code="UNAVAILABLE")


@dataclass
class Tally:
    """What was answered, by userid (each event has its own), and what the topic got."""

    promised: dict[str, str] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    arrived: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def lost(self) -> list[str]:
        return sorted(self.promised.keys() - self.arrived.keys())

    def renamed(self) -> list[str]:
        """Events of which a copy has another event id than was answered."""
        return sorted(
            user for user, event_id in self.promised.items() if set(self.arrived[user]) - {event_id}
        )

    def copies(self) -> int:
        return sum(len(ids) - 1 for ids in self.arrived.values() if len(ids) > 1)

    def summary(self) -> str:
        return (
            f"{len(self.promised):,} answered with 2xx {dict(self.statuses)}, "
            f"{len(self.arrived):,} arrived ({self.copies():,} further copies), "
            f"{len(self.lost()):,} lost, {len(self.renamed()):,} under another id"
        )


async def call(port: int, tally: Tally, names: itertools.count[int], prefix: str) -> None:
    """Sends one event after another on one connection until it breaks, and notes each answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while True:
            number = next(names)
            event = {"userid": f"{prefix}-{number}", "date": DATE}
            if number % 2:
                event["event_id"] = f"chosen-{prefix}-{number}"
            path, body = "/events/signin", json.dumps(event).encode()
            if batch := number % 16 == 0:
                path, body = "/events/signin/batch", b"[" + body + b"]"
            writer.write(
                f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\n\r\n".encode()
                + body
            )
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r", 1)[0])
            answer = json.loads(await reader.readexactly(length))
            status = head[9:12].decode()
            if status == "202":
                answer = answer["results"][0] if batch and "results" in answer else answer
                answer = answer[0] if isinstance(answer, list) else answer
                tally.promised[event["userid"]] = answer["event_id"]
                status = answer["status"]
            tally.statuses[status] += 1
    except (OSError, EOFError):
        return  # it was killed: what was under way has no answer
    finally:
        writer.close()


async def until_killed(ours: Server, tally: Tally, prefix: str, chance: random.Random) -> None:
    """Loads the service, and kills it after a while in which it answered at least a few."""
    names = itertools.count()
    before = len(tally.promised)
    calls = [asyncio.create_task(call(ours.port, tally, names, prefix)) for _ in range(CALLERS)]
    deadline = time.monotonic() + DEADLINE_SECONDS
    try:
        await asyncio.sleep(chance.uniform(SHORTEST_SECONDS, LONGEST_SECONDS))
        while len(tally.promised) < before + LEAST_ANSWERS:
            if time.monotonic() > deadline:
                raise SystemExit(f"{prefix}: too few answers. {tally.summary()}")
            await asyncio.sleep(0.01)
    finally:
        ours.kill()
        await asyncio.gather(*calls)


def collect(address: str, tally: Tally) -> None:
    for message in pull_all(address):
        tally.arrived[json.loads(message.data)["userid"]].append(message.attributes["event_id"])


def run(
    directory: Path,
    rounds: int,
    *,
    database_url: str = "",
    workers: int = 1,
    seed: int = 1,
    quiet: bool = False,
) -> Tally:
    """The rounds, then the count. Raises SystemExit where the service stops answering."""
    tally = Tally()
    chance = random.Random(seed)
    with local_pubsub(directory) as pubsub:
        make_topic(pubsub.address)

        def serve() -> Server:
            return service(directory, pubsub.address, workers=workers, database_url=database_url)

        for number in range(rounds):
            out = number % 2 == 1
            set_faults(pubsub.address, [OUTAGE] if out else [])
            ours = serve().start()
            asyncio.run(until_killed(ours, tally, f"round-{number}", chance))
            if not quiet:
                kind = "outage " if out else "healthy"
                waiting = waiting_rows(database_url, directory)
                print(f"round {number + 1:>3} {kind} {waiting:>6} wait; {dict(tally.statuses)}", flush=True)
            collect(pubsub.address, tally)
        set_faults(pubsub.address, [])
        with serve() as ours:
            deadline = time.monotonic() + DRAIN_SECONDS
            while waiting := waiting_rows(database_url, directory):
                if time.monotonic() > deadline:
                    raise SystemExit(f"{waiting} events are still in the outbox after {DRAIN_SECONDS:g} s")
                time.sleep(0.1)
            if code := ours.stop():
                raise SystemExit(f"the service ended with code {code}")
        collect(pubsub.address, tally)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1, help="processes of the service")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--seed", type=int, default=1, help="decides when each round ends")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves no server behind
    with (
        tempfile.TemporaryDirectory(prefix="signin-kill-rounds-") as directory,
        database_of(arguments.database) as database_url,
    ):
        tally = run(
            Path(directory),
            arguments.rounds,
            database_url=database_url,
            workers=arguments.workers,
            seed=arguments.seed,
        )
    print(tally.summary())
    for name in (*tally.lost()[:20], *tally.renamed()[:20]):
        print(f"  {name}: answered {tally.promised[name]}, arrived {tally.arrived.get(name)}")
    if tally.lost() or tally.renamed():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
