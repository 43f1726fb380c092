"""`signin emit`: sends sign-ins to the service, as a backend would."""

from __future__ import annotations

import asyncio
import secrets
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

import httpx
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service.cli.client import DEADLINE_SECONDS, credentials, problem_sentence, service_url, stranger_sentence
from service.cli.terminal import command, err, fail, out

CONCURRENCY = 32
ATTEMPTS = 5
LONGEST_PAUSE_SECONDS = 5.0


@dataclass
class EmitReport:
    """What became of the events of one run. `accepted` holds the event ids answered with 2xx."""

    accepted: list[str] = field(default_factory=list)
    spooled: int = 0  # of them, those that wait in the outbox
    failures: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def events_per_second(self) -> float:
        return len(self.accepted) / self.seconds if self.seconds else 0.0

    def take(self, response: httpx.Response) -> None:
        """Counts an answer: with 2xx the event it names, or else a failure under what the answer says."""
        if not response.is_success:
            self.failures[problem_sentence(response)] += 1
            return
        try:
            answer = response.json()
            event_id, is_spooled = answer["event_id"], answer["status"] == "spooled"
        except (ValueError, KeyError, TypeError):
            self.failures[stranger_sentence(response)] += 1
            return
        self.accepted.append(event_id)
        self.spooled += is_spooled


def sample_event(number: int) -> dict[str, Any]:
    """A plausible sign-in of one of 1,000 users, now."""
    return {
        "userid": f"user-{number % 1000:04d}",
        "date": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "event_id": f"emit-{secrets.token_hex(8)}",
    }


async def send(client: httpx.AsyncClient, event: dict[str, Any]) -> httpx.Response | None:
    """Posts one event; repeats it under the same event id while the service says that this helps.

    Returns the last answer, or None when there was none.
    """
    response = None
    for attempt in range(ATTEMPTS):
        pause = min(0.1 * 2**attempt, LONGEST_PAUSE_SECONDS)
        try:
            response = await client.post("/events/signin", json=event)
        except httpx.TransportError:
            response = None
        else:
            if response.status_code not in (429, 503):
                return response
            wished = response.headers.get("Retry-After", "")
            pause = min(float(wished), LONGEST_PAUSE_SECONDS) if wished.isdigit() else pause
        if attempt < ATTEMPTS - 1:
            await asyncio.sleep(pause)
    return response


async def emit_events(
    base_url: str,
    events: AsyncIterator[dict[str, Any]],
    on_answer: Callable[[], object] = lambda: None,
    report: EmitReport | None = None,
) -> EmitReport:
    """Posts all events, at most CONCURRENCY at once; a given `report` outlives the cancellation of this."""
    report = report or EmitReport()
    started = time.monotonic()
    shared = _Shared(events)
    tls = ssl.create_default_context()
    headers = credentials(base_url)

    async def worker() -> None:
        # A client each: with 64 connections in one pool, httpx spends 10 ms a request on choosing one.
        async with httpx.AsyncClient(
            base_url=base_url, timeout=DEADLINE_SECONDS, verify=tls, headers=headers
        ) as client:
            async for event in shared:
                response = await send(client, event)
                if response is None:
                    report.failures["no answer"] += 1
                else:
                    report.take(response)
                on_answer()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(worker())
    finally:
        report.seconds = time.monotonic() - started
    return report


class _Shared(AsyncIterator[dict[str, Any]]):
    """One asynchronous iterator that several workers draw from."""

    def __init__(self, source: AsyncIterator[dict[str, Any]]) -> None:
        self._source = source
        self._lock = asyncio.Lock()

    async def __anext__(self) -> dict[str, Any]:
        async with self._lock:
            return await anext(self._source)


async def sample_events(count: int, rate: float = 0.0) -> AsyncIterator[dict[str, Any]]:
    """`count` sample events, at most `rate` a second (0: as fast as they are taken)."""
    started = time.monotonic()
    for number in range(count):
        if rate:
            await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
        yield sample_event(number)


def progress_bar(**options: Any) -> Progress:
    """A progress bar on standard error, so that results can be piped."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err, **options)


def emit(
    url: Annotated[
        str | None, typer.Option("--url", help="Base URL of the service [env: SIGNIN_URL]")
    ] = None,
    userid: Annotated[str, typer.Option(help="Who signed in")] = "93234234",
    date: Annotated[str | None, typer.Option(help="When, RFC 3339; now if not given")] = None,
    event_id: Annotated[
        str | None, typer.Option(help="Id of the event; made by the service if not given")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=10_000_000, help="Many sample events instead")] = 1,
    rate: Annotated[float, typer.Option(min=0, help="Events a second with --count; 0 is full speed")] = 0.0,
) -> None:
    """Send one sign-in, or --count of them."""
    base_url = service_url(url)
    if count > 1 and (date or event_id):
        fail("--date and --event-id are for one event, --count is for many", exit_code=2)
    if count == 1:
        event = {"userid": userid, "date": date or datetime.now(UTC).isoformat().replace("+00:00", "Z")}
        asyncio.run(emit_one(base_url, event | ({"event_id": event_id} if event_id else {})))
        return
    report, interrupted = EmitReport(), False
    with progress_bar() as progress:
        task = progress.add_task("sending", total=count)
        work = emit_events(base_url, sample_events(count, rate), lambda: progress.advance(task), report)
        try:
            asyncio.run(work)
        except KeyboardInterrupt:
            interrupted = True
    spooled = f" ({report.spooled:,} of them spooled)" if report.spooled else ""
    out.print(
        f"{len(report.accepted):,} accepted{spooled} in {report.seconds:.1f} s, "
        f"{report.events_per_second:,.0f} events/s"
    )
    if report.failures:
        fail("; ".join(f"{n:,} x {cause}" for cause, n in report.failures.most_common(5)))
    if interrupted:
        fail(f"interrupted; up to {CONCURRENCY} more may have been taken unseen", exit_code=130)


async def emit_one(base_url: str, event: dict[str, Any]) -> None:
    headers = credentials(base_url)
    async with httpx.AsyncClient(base_url=base_url, timeout=DEADLINE_SECONDS, headers=headers) as client:
        response = await send(client, event)
    if response is None:
        fail(f"{base_url} does not answer. Is the service running? Try `{command('up')}`.")
    if not response.is_success:
        fail(problem_sentence(response))
    out.print_json(response.text)
