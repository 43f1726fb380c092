"""`signin loadtest`: a bounded load of sign-ins, its figures, and a verdict by exit code."""

from __future__ import annotations

import asyncio
import secrets
import signal
import ssl
import time
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

import typer

from service.cli.arrivals import Arrivals, Table
from service.cli.client import credentials, running_settings, service_url
from service.cli.emit import progress_bar
from service.cli.load_report import Limits, Report, report_of, show
from service.cli.terminal import err, fail, out
from service.config import is_loopback
from service.load import Crowd, Plan, Samples, Target
from service.load.signins import Signins

MOST_EVENTS = 10_000_000
INTERRUPTED_EXIT_CODE = 130
BUSY_SHARE = 0.8


Url = Annotated[str | None, typer.Option("--url", help="Base URL of the service [env: SIGNIN_URL]")]
Rate = Annotated[
    float, typer.Option(min=0, max=100_000, help="Open loop: requests a second; 0 is closed loop")
]
Concurrency = Annotated[
    int, typer.Option(min=1, max=2000, help="Callers of a closed loop; most connections of an open one")
]
Duration = Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds, after the warm-up")]
Count = Annotated[
    int, typer.Option(min=0, max=MOST_EVENTS, help=f"Most events after the warm-up; 0 is {MOST_EVENTS:,}")
]
Batch = Annotated[int, typer.Option(min=1, max=1000, help="Events in a request")]
WarmUp = Annotated[
    float | None,
    typer.Option(
        "--warm-up", min=0, max=600, help="Seconds before it is measured; none with --count, else 1"
    ),
]
Timeout = Annotated[float, typer.Option(min=0.1, max=600, help="Seconds for an answer")]
AllowRemote = Annotated[
    str, typer.Option("--allow-remote", metavar="HOST", help="Load this host, which is not this machine")
]
Verify = Annotated[
    bool, typer.Option("--verify", help="Wait until each accepted event is a row, and count copies")
]
VerifySeconds = Annotated[
    float, typer.Option("--verify-seconds", min=1, max=86_400, help="Longest wait for that")
]
MaxP99Ms = Annotated[float | None, typer.Option("--max-p99-ms", min=0, help="Limit of the p99")]
MaxErrorShare = Annotated[
    float | None, typer.Option("--max-error-share", min=0, max=1, help="Limit of events not accepted")
]
MinRate = Annotated[float | None, typer.Option("--min-rate", min=0, help="Least accepted events a second")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON")]


def loadtest(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    url: Url = None,
    rate: Rate = 0.0,
    concurrency: Concurrency = 64,
    duration: Duration = 10.0,
    count: Count = 0,
    batch: Batch = 1,
    warm_up: WarmUp = None,
    timeout: Timeout = 10.0,
    allow_remote: AllowRemote = "",
    verify: Verify = False,
    verify_seconds: VerifySeconds = 120.0,
    max_p99_ms: MaxP99Ms = None,
    max_error_share: MaxErrorShare = None,
    min_rate: MinRate = None,
    as_json: AsJson = False,
) -> None:
    """Load the service with sign-ins. The exit code is 1 where a limit is broken or an event is lost."""
    base_url = service_url(url)
    parts = allowed(base_url, allow_remote)
    if warm_up is None:
        warm_up = 0.0 if count else 1.0  # who gives a number wants no more events than that
    if not count and duration + warm_up > MOST_EVENTS / max(rate * batch, 1.0):
        fail(f"that is more than {MOST_EVENTS:,} events: shorten it, or give --count", exit_code=2)
    most = count or MOST_EVENTS
    plan = Plan(concurrency, duration, rate, -(-most // batch), warm_up, timeout)
    address = parts.netloc.rpartition("@")[2]
    signins = Signins(f"load-{secrets.token_hex(4)}", batch, address, credentials(base_url))
    began = datetime.now(UTC)
    crowd = crowd_of(parts, plan, signins, most)
    samples, cpu_seconds, is_cut = carry_out(crowd)
    limits = Limits(max_p99_ms, max_error_share, min_rate)
    report = report_of(base_url, plan, signins, samples, dict(crowd.failures), limits)
    report.interrupted = is_cut
    report.cpu_share = cpu_seconds
    report.lag_ms = round(crowd.lag_seconds * 1000, 1)
    if verify and not is_cut:
        report.arrivals = verified(signins, began, verify_seconds)
    tell(report, as_json=as_json)


def crowd_of(parts: SplitResult, plan: Plan, signins: Signins, most_events: int) -> Crowd:
    """Those who will send the sign-ins to the URL, exactly `most_events` of them if there is the time."""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    in_last = most_events - (plan.requests - 1) * signins.batch
    return Crowd(
        Target(parts.hostname or "", port, tls),
        plan,
        signins.request,
        signins.taken,
        lambda number: signins.shorten(number, in_last),
    )


def allowed(base_url: str, allow_remote: str) -> SplitResult:
    """The parts of the URL; ends the command where its host is neither this machine nor allowed by name."""
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        fail(f"{base_url} is no URL: {error}", exit_code=2)
    if parts.scheme not in ("http", "https") or not host or parts.path not in ("", "/"):
        fail(f"{base_url} is no base URL, as http://127.0.0.1:8080 is", exit_code=2)
    if not is_loopback(host) and host != allow_remote:
        fail(
            f"{host} is not this machine. A load test can take a service down, and costs money: "
            f"--allow-remote {host} says that you mean it.",
            exit_code=2,
        )
    return parts


def carry_out(crowd: Crowd) -> tuple[Samples, float, bool]:
    """Runs the load until its end or Ctrl-C: what was seen, cores used, and whether it was cut short."""
    import uvloop  # uvicorn's event loop, so that the generator costs as little

    is_cut = False

    async def loaded() -> Samples:
        loop = asyncio.get_running_loop()

        def cut() -> None:
            nonlocal is_cut
            is_cut = True
            loop.remove_signal_handler(signal.SIGINT)  # a second one ends us at once
            crowd.stop()

        loop.add_signal_handler(signal.SIGINT, cut)
        try:
            return await crowd.run()
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    began, cpu = time.monotonic(), time.process_time()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        samples = runner.run(loaded())
    share = (time.process_time() - cpu) / max(time.monotonic() - began, 0.001)
    return samples, round(share, 3), is_cut


def verified(signins: Signins, began: datetime, seconds: float) -> Arrivals:
    """Waits until the table has every accepted event, and counts; ends the command where it cannot look."""
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    try:
        table = Table(running_settings(), signins, began)
        try:
            with progress_bar(transient=True) as progress:
                total = sum(1 for _ in signins.accepted())
                task = progress.add_task("rows in BigQuery", total=total)
                return table.await_all(seconds, lambda rows: progress.update(task, completed=rows))
        finally:
            table.close()
    except (GoogleAPIError, GoogleAuthError, OSError) as error:
        fail(f"BigQuery does not answer: {error}")


def tell(report: Report, *, as_json: bool) -> None:
    """Prints the report and ends the command with its verdict."""
    if as_json:
        out.print_json(data=report.as_json())
    else:
        show(report)
    if report.cpu_share > BUSY_SHARE:
        err.print("[yellow]The generator was busy itself: the service may be faster than this.[/]")
    if report.interrupted:
        raise typer.Exit(INTERRUPTED_EXIT_CODE)
    if not report.passed:
        raise typer.Exit(1)
