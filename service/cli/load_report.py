"""What a load has shown: figures, the verdict against limits, and how both are printed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape

from service.cli.arrivals import Arrivals
from service.cli.terminal import out
from service.load import Plan, Samples, percentile
from service.load.signins import Signins

PERCENTS = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9}
_ACCEPTED = ("published", "spooled")


@dataclass(frozen=True)
class Limits:
    """What the load must show; None asks for nothing."""

    max_p99_ms: float | None = None
    max_error_share: float | None = None
    min_rate: float | None = None


@dataclass(frozen=True)
class Verdict:
    """One limit, what was measured, and whether the limit is kept."""

    name: str
    limit: float
    value: float | None
    met: bool


@dataclass
class Report:
    """The figures of one run; latencies are in ms, None where so many had no answer that there is none."""

    url: str
    run: str
    plan: Plan
    batch: int
    interrupted: bool
    seconds: float
    requests: int
    unanswered: dict[str, int]
    events: dict[str, int]
    events_per_second: float
    error_share: float
    latency_ms: dict[str, float | None]
    answers: list[dict[str, Any]]
    cpu_share: float
    lag_ms: float
    arrivals: Arrivals | None
    verdicts: list[Verdict]

    @property
    def passed(self) -> bool:
        """Whether all limits are kept, and something was measured at all."""
        is_whole = self.arrivals is None or not self.arrivals.lost
        return is_whole and self.events["accepted"] > 0 and all(each.met for each in self.verdicts)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed, "mode": "open" if self.plan.rate else "closed"}


def report_of(
    url: str,
    plan: Plan,
    signins: Signins,
    samples: Samples,
    unanswered: dict[str, int],
    limits: Limits,
) -> Report:
    """All figures but those of the generator itself and of the table."""
    events = {"accepted": 0, "refused": 0, "unanswered": 0}
    for (status, code), count in signins.answers.items():
        kind = "unanswered" if not status else "accepted" if code in _ACCEPTED else "refused"
        events[kind] += count
    total = sum(events.values())
    good = samples.good()
    in_time = samples.rate() * samples.seconds / good if good else 0.0
    rate = events["accepted"] * in_time / samples.seconds if samples.seconds else 0.0
    ordered = sorted(samples.took)
    latency = {name: _finite(percentile(ordered, percent) * 1000) for name, percent in PERCENTS.items()}
    error_share = 1 - events["accepted"] / total if total else 1.0
    return Report(
        url=url,
        run=signins.run,
        plan=plan,
        batch=signins.batch,
        interrupted=False,
        seconds=round(samples.seconds, 3),
        requests=len(samples),
        unanswered=unanswered,
        events=events,
        events_per_second=round(rate, 1),
        error_share=error_share,
        latency_ms=latency | {"max": _finite(samples.longest_ms())},
        answers=[
            {"status": status or None, "code": code, "events": count}
            for (status, code), count in sorted(signins.answers.items())
        ],
        cpu_share=0.0,
        lag_ms=0.0,
        arrivals=None,
        verdicts=verdicts_of(limits, latency["p99"], error_share, rate),
    )


def _finite(milliseconds: float) -> float | None:
    return round(milliseconds, 3) if math.isfinite(milliseconds) else None


def verdicts_of(limits: Limits, p99_ms: float | None, error_share: float, rate: float) -> list[Verdict]:
    """Each limit that was given; a p99 that there is not exceeds every limit."""
    found = []
    if (most := limits.max_p99_ms) is not None:
        found.append(Verdict("max_p99_ms", most, p99_ms, p99_ms is not None and p99_ms <= most))
    if (most := limits.max_error_share) is not None:
        found.append(Verdict("max_error_share", most, error_share, error_share <= most))
    if (least := limits.min_rate) is not None:
        found.append(Verdict("min_rate", least, round(rate, 1), rate >= least))
    return found


def show(report: Report) -> None:
    """Prints the figures for people."""
    for name, text in _lines(report):
        out.print(f"[dim]{name:<11}[/]{text}", highlight=False, soft_wrap=True)


def _lines(report: Report) -> list[tuple[str, str]]:
    plan = report.plan
    kind = (
        f"open loop, {plan.rate:,g} requests/s over at most {plan.connections} connections"
        if plan.rate
        else f"closed loop, {plan.connections} callers"
    )
    cut = "  [yellow]interrupted[/]" if report.interrupted else ""
    latency = "  ".join(
        f"{name.replace('_', '.')} {'none' if value is None else f'{value:,.1f}'}"
        for name, value in report.latency_ms.items()
    )
    causes = ", ".join(f"{escape(cause)} {count:,}" for cause, count in report.unanswered.items())
    is_even = sum(report.events.values()) == report.requests * report.batch
    of_batches = f" of {'' if is_even else 'at most '}{report.batch} events" if report.batch > 1 else ""
    lines = [
        ("load", f"{kind}, {report.seconds:,.1f} s, {escape(report.url)}, run {report.run}{cut}"),
        (
            "requests",
            f"{report.requests:,}{of_batches}" + (f", without an answer: {causes}" if causes else ""),
        ),
        ("accepted", f"{report.events['accepted']:,} events, {report.events_per_second:,.1f} a second"),
        ("latency ms", latency),
    ]
    for answer in report.answers:
        status = answer["status"] or "none"
        lines.append(("answers", f"{status} {escape(answer['code'])}  {answer['events']:,}"))
    lines.append(("generator", f"{report.cpu_share:.0%} of a core, {report.lag_ms:.1f} ms late at most"))
    if report.arrivals:
        lines += _arrival_lines(report.arrivals)
    for each in report.verdicts:
        word = "[green]kept[/]" if each.met else "[bold red]broken[/]"
        value = "none" if each.value is None else f"{each.value:,.4g}"
        lines.append(("limit", f"{each.name} {each.limit:,g}: {value}, {word}"))
    return lines


def _arrival_lines(found: Arrivals) -> list[tuple[str, str]]:
    style = "bold red" if found.lost else "green"
    text = (
        f"of {found.expected:,} accepted events [{style}]{found.lost:,} are lost[/], "
        f"{found.copies:,} further copies ({found.seconds:.1f} s)"
    )
    lines = [("table", text)]
    if found.unanswered:
        lines.append(("table", f"{found.unanswered:,} without an answer are there too"))
    if found.strange:
        lines.append(("table", f"[bold red]{found.strange:,} that were refused are there[/]"))
    if found.lost_ids:
        lines.append(("lost", escape(", ".join(found.lost_ids))))
    return lines
