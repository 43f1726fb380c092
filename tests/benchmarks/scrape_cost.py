"""What a scrape of /metrics costs the sign-ins: throughput with scrapes and without, in turns.

`python -m tests.benchmarks.scrape_cost [--seconds S] [--rounds N] [--every S] [--workers N]`. Each pair of
rounds has one with a scrape every so often and one without, and the order turns from pair to pair; the ratio
is the median of the pairs' own.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import tempfile
import threading
from pathlib import Path
from typing import Self

from tests.benchmarks import ingest_load
from tests.benchmarks.ingest_load import Plan, request_bytes
from tests.benchmarks.ingest_servers import PATH
from tests.pubsub_topic import make_topic
from tests.server_process import Server, local_pubsub, service

BODY = b'{"userid": "93234234", "date": "2017-10-17T20:57:17.338320"}'
CONNECTIONS = 64
WARM_UP_SECONDS = 2.0


class Scraper:
    """Reads /metrics every so often on one connection, as Prometheus does."""

    def __init__(self, port: int, every_seconds: float) -> None:
        self.bytes = 0
        self.scrapes = 0
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        self._every_seconds = every_seconds
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ending.is_set():
            self._connection.request("GET", "/metrics")
            answer = self._connection.getresponse()
            self.bytes = len(answer.read())
            assert answer.status == 200
            self.scrapes += 1
            self._ending.wait(self._every_seconds)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._connection.close()


class Rounds:
    """Throughput and CPU of each round, with scrapes and without."""

    def __init__(self, server: Server, seconds: float, every_seconds: float) -> None:
        self.rates: dict[bool, list[float]] = {True: [], False: []}
        self.cpu: dict[bool, list[float]] = {True: [], False: []}
        self.scrapes = self.bytes = 0
        self._server = server
        self._plan = Plan("127.0.0.1", server.port, request_bytes(PATH, BODY), CONNECTIONS, seconds)
        self._every_seconds = every_seconds

    def play(self, scraped: bool) -> None:
        before = self._server.cpu_seconds()
        if scraped:
            with Scraper(self._server.port, self._every_seconds) as scraper:
                samples = ingest_load.run(self._plan)
            self.scrapes += scraper.scrapes
            self.bytes = scraper.bytes
        else:
            samples = ingest_load.run(self._plan)
        assert samples.statuses().keys() == {"202"}
        self.rates[scraped].append(samples.rate())
        self.cpu[scraped].append((self._server.cpu_seconds() - before) / samples.good() * 1e6)

    def ratio(self, figures: dict[bool, list[float]]) -> float:
        pairs = zip(figures[True], figures[False], strict=True)
        return statistics.median(scraped / alone for scraped, alone in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one round")
    parser.add_argument("--rounds", type=int, default=10, help="pairs of rounds")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two scrapes")
    parser.add_argument("--workers", type=int, default=1, help="processes of the service")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="signin-scrape-") as name:
        directory = Path(name)
        with local_pubsub(directory) as pubsub:
            make_topic(pubsub.address)
            with service(directory, pubsub.address, workers=arguments.workers) as ours:
                rounds = Rounds(ours, arguments.seconds, arguments.every)
                ingest_load.run(
                    Plan("127.0.0.1", ours.port, request_bytes(PATH, BODY), CONNECTIONS, WARM_UP_SECONDS)
                )
                for number in range(arguments.rounds):
                    for scraped in (True, False) if number % 2 else (False, True):
                        rounds.play(scraped)
    for scraped, word in ((True, "scraped"), (False, "alone")):
        rate, cpu = statistics.median(rounds.rates[scraped]), statistics.median(rounds.cpu[scraped])
        print(f"{word:<9}{rate:>9,.0f} requests/s   {cpu:5.1f} µs of CPU each")
    print(f"{rounds.scrapes} scrapes of {rounds.bytes:,} bytes, one every {arguments.every:g} s")
    print(f"throughput, scraped to alone: {rounds.ratio(rounds.rates):.3f}   (>= 0.97)")
    print(f"CPU of a request, scraped to alone: {rounds.ratio(rounds.cpu):.3f}")


if __name__ == "__main__":
    main()
