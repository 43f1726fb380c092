"""How the `signin jobs` commands print a job, its history, its messages and its metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
from rich.markup import escape

from service.cli.client import credentials, problem_sentence
from service.cli.terminal import err, fail, out, styled_state, table_of

FOLLOW_TRIES = 30
FOLLOW_PAUSE_SECONDS = 1.0
# A stream says something every fifteen seconds, so a longer silence is a dead connection.
SILENCE_SECONDS = 45.0


def print_json(value: Any) -> None:
    """One JSON document on standard output, for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)  # noqa: T201 - Rich would wrap it


def show_job(job: dict[str, Any], *, as_json: bool = False) -> None:
    """Prints a job as the service tells it."""
    if as_json:
        print_json(job)
        return
    facts = [
        ("name", job["name"]),
        ("pipeline", job.get("pipeline")),
        ("template", job.get("template_path")),
        ("dataflow job", job.get("dataflow_job_id")),
        ("console", job.get("console_url")),
        ("asked for", job.get("requested_state")),
        ("workers", _workers(job)),
        ("restarts", _restarts(job)),
        ("created", job.get("created_at")),
        ("observed", job.get("observed_at")),
        ("cause", job.get("cause")),
    ]
    stale = " [yellow]stale[/]" if job.get("stale") else ""
    out.print(f"[bold]{job['id']}[/] {styled_state(job['state'])}{stale}")
    for label, value in facts:
        _print_fact(label, value, 13)
    attempts = job.get("attempts") or []
    if len(attempts) > 1:
        for attempt in attempts:
            told = f"{attempt['kind']} {attempt['state']} {attempt['dataflow_job_id'] or ''}"
            _print_fact(f"attempt {attempt['number']}", told, 13)
    allowed = [name for name, action in (job.get("actions") or {}).items() if action["allowed"]]
    _print_fact("may", ", ".join(name.replace("_", "-") for name in allowed), 13)
    for name, value in sorted((job.get("counters") or {}).items()):
        out.print(f"  [dim]{name:<30}[/]{value:,}", highlight=False)


def show_jobs(title: str, columns: tuple[str, ...], jobs: list[dict[str, Any]]) -> None:
    """Prints a table of these members of each job."""
    out.print(table_of(title, columns, [[job.get(column) for column in columns] for job in jobs]))


def show_event(event: dict[str, Any], *, as_json: bool = False) -> None:
    """Prints one entry of a history in one line."""
    if as_json:
        print(json.dumps(event, ensure_ascii=False), flush=True)  # noqa: T201 - one JSON object a line
        return
    told = " ".join(
        f"{name}={in_one_line(value)}" for name, value in event["detail"].items() if value is not None
    )
    if event["actor"] != "service":  # what the service did by itself is most of a history
        told = f"{told} by {event['actor']}".lstrip()
    line = (
        f"[dim]{event['sequence']:>5} {event['at'][:23]}[/] [bold]{escape(event['kind'])}[/] {escape(told)}"
    )
    out.print(line, highlight=False, soft_wrap=True)


def in_one_line(value: object) -> str:
    """A member of an entry as people read it: line breaks are bars, and nothing moves the cursor."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    lines = (line.strip() for line in text.splitlines())
    return "".join(c if c.isprintable() else "�" for c in " | ".join(filter(None, lines)))


def show_metrics(metrics: dict[str, Any]) -> None:
    """Prints what is known; what is not is a dash."""
    backlog, drain = metrics["backlog"], metrics["drain"]
    facts = [
        ("throughput", metrics["throughput_per_second"], "messages/s"),
        ("freshness", metrics["freshness_seconds"], "s"),
        ("latency", metrics["latency_seconds"], "s"),
        ("vCPUs", metrics["vcpus"], ""),
        ("rows", metrics["rows"], ""),
        ("dead letters", metrics["dead_letters"], ""),
        ("backlog", backlog["messages"], "messages"),
        ("oldest waiting", backlog["oldest_age_seconds"], "s"),
    ]
    for label, value, unit in facts:
        shown = "-" if value is None else f"{value:,.1f}".removesuffix(".0") + f" {unit}"
        out.print(f"  [dim]{label:<16}[/]{shown}", highlight=False)
    for name, one in sorted((metrics["distributions"] or {}).items()):
        values = f"mean {one['mean']:,.1f}, {one['min']:,.0f} to {one['max']:,.0f}, {one['count']:,} values"
        out.print(f"  [dim]{name:<26}[/]{values}", highlight=False)
    if drain:
        deadline = (
            f", due {drain['deadline_at']}, then {drain['on_deadline']}" if drain["deadline_at"] else ""
        )
        _print_fact("draining", f"since {drain['requested_at']}{deadline}", 16)
    if metrics["stale"]:
        err.print("[yellow]Dataflow cannot be asked now; this is older.[/]")


def followed(base_url: str, path: str, after: int) -> Iterator[dict[str, Any]]:
    """The entries of a history as they come, until the job has ended; goes on after a broken connection."""
    tries = 0
    key = credentials(base_url)
    while True:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after), **key}
        try:
            with httpx.stream("GET", base_url + path, headers=headers, timeout=SILENCE_SECONDS) as answer:
                if answer.status_code == 204:
                    return
                if not answer.is_success:
                    answer.read()
                    if answer.status_code != 503:
                        fail(problem_sentence(answer))
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        event = json.loads(line.removeprefix("data: "))
                        after, tries = event["sequence"], 0
                        yield event
        except httpx.TransportError:
            pass
        tries += 1
        if tries >= FOLLOW_TRIES:
            fail(f"{base_url} has not answered {FOLLOW_TRIES} times")
        time.sleep(FOLLOW_PAUSE_SECONDS if tries > 1 else 0.1)


def _workers(job: dict[str, Any]) -> str | None:
    """The bounds that were asked for while the job ran."""
    least, most = job.get("min_workers"), job.get("max_workers")
    if least is None and most is None:
        return None
    bounds = " ".join(f"{word} {n}" for word, n in (("from", least), ("to", most)) if n is not None)
    return f"{bounds}, not taken by Dataflow yet" if job.get("scaling_pending") else bounds


def _restarts(job: dict[str, Any]) -> str | None:
    if job.get("restart_policy") != "on-failure":
        return None
    due = f", next at {job['restart_at']}" if job.get("restart_at") else ""
    return f"{job['restarts']} of {job['restart_limit']}{due}"


def _print_fact(label: str, value: object, width: int) -> None:
    if value:
        out.print(f"  [dim]{label:<{width}}[/]{escape(str(value))}", highlight=False, soft_wrap=True)
