"""`signin demo`: the main job from start to end, on this machine, with every event accounted for."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from service.cli import jobs
from service.cli.emit import EmitReport, emit_events, progress_bar, sample_event
from service.cli.job_reports import show_job
from service.cli.platform import Platform, standalone_settings, until_interrupted
from service.cli.rows import SigninTables, dead_letter_table, row_table
from service.cli.terminal import clear_errors, err, fail, out, styled_state
from service.config import Settings

ARTICLE_EVENT = {"userid": "93234234", "date": "2017-10-17T20:57:17.338320"}
BROKEN_MESSAGES = {
    b"signed in": "invalid_json",
    b"\xff\xfe\x00": "invalid_utf8",
    b'{"userid": 93234234, "date": "2017-10-17T20:57:17.338320"}': "userid_invalid",
    b'{"userid": "93234234"}': "date_missing",
    b'{"userid": "93234234", "date": "yesterday"}': "date_invalid",
}
REQUEST_DEADLINE_SECONDS = 30.0
START_DEADLINE_SECONDS = 60.0
STALL_SECONDS = 60.0
POLL_SECONDS = 0.25


class DemoFailedError(Exception):
    """The demo cannot go on, or an event went astray; the message says which."""


@dataclass(frozen=True)
class Arrival:
    """What the tables hold against what was sent."""

    missing: int
    surplus: int
    dead_letters: int
    reasons: Counter[str]

    def complaint(self) -> str:
        """What is wrong in one sentence; empty when every message became exactly one thing."""
        expected = Counter(BROKEN_MESSAGES.values())
        faults = []
        if self.missing:
            faults.append(f"{self.missing} accepted events are not in the table")
        if self.surplus:
            faults.append(f"{self.surplus} rows are there that nobody sent, or twice")
        if self.reasons != expected:
            faults.append(f"dead letters are {dict(self.reasons)}, not {dict(expected)}")
        return "; ".join(faults)


def demo(
    events: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many sign-ins")] = 20,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running until Ctrl-C")] = False,
) -> None:
    """Run the whole path once: HTTP, Pub/Sub, Beam job, BigQuery, drain. Needs no cloud account."""
    with tempfile.TemporaryDirectory(prefix="signin-demo-") as directory, clear_errors():
        settings = demo_settings(Path(directory))
        try:
            asyncio.run(Demo(settings, events, keep).run())
        except DemoFailedError as error:
            fail(str(error))


def demo_settings(directory: Path) -> Settings:
    """Settings of a world of its own: nothing of the user's stack or cloud is touched."""
    return standalone_settings({"data_dir": directory, "port": 0})


class Demo:
    """One run. `run` raises DemoFailedError unless every message became exactly one row or dead letter."""

    def __init__(self, settings: Settings, events: int, keep: bool) -> None:
        self._settings = settings
        self._events = events
        self._keep = keep
        self._started = self._publishing_began = self._publishing_ended = time.monotonic()

    async def run(self) -> None:
        with err.status("starting Pub/Sub, BigQuery, Dataflow and the service on free ports"):
            platform = Platform(self._settings)
            await platform.start()
        try:
            self._say(f"everything runs; the service is at {platform.url}")
            await self._walk(platform)
            if self._keep:
                platform.print_addresses()
                err.print("Everything stays up until Ctrl-C.")
                await until_interrupted(platform)
        finally:
            with err.status("stopping"):
                await platform.stop()

    async def _walk(self, platform: Platform) -> None:
        async with httpx.AsyncClient(base_url=platform.url, timeout=REQUEST_DEADLINE_SECONDS) as client:
            job = await self._launch(client)
            report = await self._publish(platform)
            tables = SigninTables(platform.settings)
            arrival = await self._await_arrival(tables, report)
            await self._print_results(client, tables, job["id"], platform)
            if not self._keep:
                await self._drain(client, job["id"])
                arrival = await asyncio.to_thread(look, tables, report)
        if complaint := arrival.complaint():
            raise DemoFailedError(complaint)
        self._say(
            f"{len(report.accepted):,} sign-ins became {len(report.accepted):,} rows, "
            f"{len(BROKEN_MESSAGES)} broken messages became {arrival.dead_letters} dead letters; "
            "nothing was lost"
        )

    async def _launch(self, client: httpx.AsyncClient) -> dict[str, Any]:
        job = checked(await client.post("/jobs", json={}))
        with err.status(f"job {job['name']} is starting"):
            job = await self._await_job_state(client, job["id"], "RUNNING")
        self._say(f"job {job['name']} is {styled_state(job['state'])}")
        return job

    async def _await_job_state(self, client: httpx.AsyncClient, job_id: str, state: str) -> dict[str, Any]:
        until = time.monotonic() + START_DEADLINE_SECONDS
        while time.monotonic() < until:
            job = checked(await client.get(f"/jobs/{job_id}"))
            if job["state"] == state:
                return job
            if job["state"] in jobs.TERMINAL_STATES:
                raise DemoFailedError(f"the job ended as {job['state']}: {job.get('cause')}")
            await asyncio.sleep(POLL_SECONDS)
        raise DemoFailedError(f"the job was not {state} within {START_DEADLINE_SECONDS:g} s")

    async def _publish(self, platform: Platform) -> EmitReport:
        self._publishing_began = time.monotonic()
        with progress_bar(transient=True) as progress:
            task = progress.add_task("POST /events/signin", total=self._events)
            report = await emit_events(
                platform.url, demo_events(self._events), lambda: progress.advance(task)
            )
        if report.failures:
            raise DemoFailedError(f"the service refused events: {dict(report.failures)}")
        await asyncio.to_thread(publish_broken, platform.settings)
        self._publishing_ended = time.monotonic()
        self._say(
            f"{len(report.accepted):,} sign-ins accepted by POST /events/signin "
            f"({report.events_per_second:,.0f} events/s), {len(BROKEN_MESSAGES)} broken messages published"
        )
        return report

    async def _await_arrival(self, tables: SigninTables, report: EmitReport) -> Arrival:
        """Polls the table until the counts are reached; gives up when nothing has moved for STALL_SECONDS."""
        count, letters, best, moved = 0, 0, -1, time.monotonic()
        with progress_bar(transient=True) as progress:
            task = progress.add_task("rows in BigQuery", total=len(report.accepted))
            while time.monotonic() - moved < STALL_SECONDS:
                count, _, letters = await asyncio.to_thread(tables.counts)
                progress.update(task, completed=count)
                if count >= len(report.accepted) and letters >= len(BROKEN_MESSAGES):
                    break
                if count + letters > best:
                    best, moved = count + letters, time.monotonic()
                await asyncio.sleep(POLL_SECONDS)
        arrived = time.monotonic()
        seconds = arrived - self._publishing_began
        self._say(
            f"{count:,} rows and {letters} dead letters are in BigQuery, "
            f"{arrived - self._publishing_ended:.1f} s after the last was accepted "
            f"({count / seconds:,.0f} events/s through the job)"
        )
        return await asyncio.to_thread(look, tables, report)

    async def _print_results(
        self, client: httpx.AsyncClient, tables: SigninTables, job_id: str, platform: Platform
    ) -> None:
        out.print(row_table(await asyncio.to_thread(tables.newest, 10)))
        out.print(dead_letter_table(await asyncio.to_thread(tables.dead_letters, 10)))
        if self._keep:
            show_job(checked(await client.get(f"/jobs/{job_id}")))
        else:
            platform.print_addresses()

    async def _drain(self, client: httpx.AsyncClient, job_id: str) -> None:
        checked(await client.post(f"/jobs/{job_id}/drain"))
        with err.status("the job drains"):
            job = await self._await_job_state(client, job_id, "DRAINED")
        show_job(job)  # not before: its counters are of the last look, and only those of an end are the last
        self._say(f"job {job['name']} is {styled_state(job['state'])}")

    def _say(self, text: str) -> None:
        out.print(
            f"[dim]{time.monotonic() - self._started:5.1f} s[/]  {text}", highlight=False, soft_wrap=True
        )


async def demo_events(count: int) -> AsyncIterator[dict[str, Any]]:
    """The article's own message first, then sample events."""
    yield dict(ARTICLE_EVENT)
    for number in range(1, count):
        yield sample_event(number)


def publish_broken(settings: Settings) -> None:
    """Publishes messages that no service would have let through, with Google's own client."""
    import grpc
    from google.pubsub_v1.services.publisher import PublisherClient
    from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport

    with grpc.insecure_channel(settings.pubsub_emulator_host) as channel:
        client = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        messages = [{"data": payload} for payload in BROKEN_MESSAGES]
        client.publish(topic=settings.topic_path, messages=messages, timeout=REQUEST_DEADLINE_SECONDS)


def look(tables: SigninTables, report: EmitReport) -> Arrival:
    """Compares the tables with what was accepted, event by event."""
    surplus = Counter(tables.event_ids())
    surplus.subtract(report.accepted)
    reasons = Counter(tables.dead_letter_reasons())
    return Arrival(
        missing=sum(-n for n in surplus.values() if n < 0),
        surplus=sum(n for n in surplus.values() if n > 0),
        dead_letters=sum(reasons.values()),
        reasons=reasons,
    )


def checked(response: httpx.Response) -> dict[str, Any]:
    if not response.is_success:
        raise DemoFailedError(f"{response.request.url} answered {response.status_code}: {response.text}")
    body: dict[str, Any] = response.json()
    return body
