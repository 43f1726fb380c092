"""`signin dead-letters`: what could not become a row, and publishing it again, through the service."""

from __future__ import annotations

import base64
import difflib
import time
from typing import Annotated, Any

import typer
from rich.markup import escape

from service.cli.client import request, service_url
from service.cli.emit import progress_bar
from service.cli.job_reports import print_json
from service.cli.moments import moment
from service.cli.rows import preview
from service.cli.terminal import command, err, fail, out, table_of
from transforms.signin_event import REASONS

POLL_SECONDS = 0.25
# Beside those of the contract; the job's own words, which the service does not import.
JOB_REASONS = ("row_refused", "internal_error", "line_too_long", "file_corrupt")

app = typer.Typer(no_args_is_help=True, help="Messages that could not become a row.")

Url = Annotated[str | None, typer.Option("--url", help="Base URL of the service [env: SIGNIN_URL]")]
Reason = Annotated[str | None, typer.Option(help="Only those with this reason")]
Stage = Annotated[str | None, typer.Option(help="Only those of this stage: decode, validate or write")]
Since = Annotated[
    str | None, typer.Option(help="Only those that failed since: RFC 3339, or an age such as 30m, 12h, 7d")
]
Until = Annotated[str | None, typer.Option(help="Only those that failed before, in the same form")]
EventId = Annotated[str | None, typer.Option(help="Only those of this event")]
MessageId = Annotated[str | None, typer.Option(help="Only that of this Pub/Sub message")]
ReplayId = Annotated[str, typer.Argument(help="Id of the replay")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs")]


@app.command("list")
def list_letters(  # noqa: PLR0913, PLR0917 - one for each option
    url: Url = None,
    reason: Reason = None,
    stage: Stage = None,
    since: Since = None,
    until: Until = None,
    event_id: EventId = None,
    message_id: MessageId = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many")] = 20,
    page_token: Annotated[str | None, typer.Option(help="`next_page_token` of the page before")] = None,
    as_json: Json = False,
) -> None:
    """Show the newest dead letters, and how many there are for each reason."""
    query = narrowed(reason, stage, since, until, event_id, message_id) | {"page_size": limit}
    query |= {"page_token": page_token} if page_token else {}
    page = request("GET", service_url(url), "/dead-letters", params=query)
    if as_json:
        print_json(page)
        return
    letters = [
        (
            letter["failed_at"],
            letter["stage"],
            letter["reason"],
            letter["event_id"],
            preview(base64.b64decode(letter["payload"])),
        )
        for letter in page["dead_letters"]
    ]
    out.print(table_of("Dead letters", ("failed_at", "stage", "reason", "event_id", "payload"), letters))
    if page["counts"] is None:  # they are on the first page alone
        return
    counts = [(count["stage"], count["reason"], count["count"]) for count in page["counts"]]
    out.print(table_of("By reason", ("stage", "reason", "letters"), counts))


@app.command()
def replay(  # noqa: PLR0913, PLR0917 - one for each option
    url: Url = None,
    reason: Reason = None,
    stage: Stage = None,
    since: Since = None,
    until: Until = None,
    event_id: EventId = None,
    message_id: MessageId = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be published")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also what an earlier replay published")] = False,
    most_letters: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="End when so many are published")
    ] = None,
    wait: Annotated[
        float,
        typer.Option("--wait", min=0, max=86_400, help="Seconds to wait for its end; it goes on anyway"),
    ] = 3600.0,
    as_json: Json = False,
) -> None:
    """Publish dead letters again, each once, after their cause is mended."""
    body = narrowed(reason, stage, since, until, event_id, message_id)
    body |= {"dry_run": dry_run, "again": again} | ({"most_letters": most_letters} if most_letters else {})
    base_url = service_url(url)
    found = request("POST", base_url, "/dead-letters/replay", json=body)
    err.print(f"replay {found['id']} has begun", highlight=False)
    show_replay(await_end(base_url, found, wait), as_json=as_json)


@app.command()
def replays(
    url: Url = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many")] = 20,
    as_json: Json = False,
) -> None:
    """List replays, newest first."""
    found = request("GET", service_url(url), "/dead-letters/replays", params={"page_size": limit})
    if as_json:
        print_json(found)
        return
    columns = ("id", "state", "dry_run", "created_at", "letters", "replayed", "repeated", "unreplayable")
    rows = [[each[column] for column in columns] for each in found["replays"]]
    out.print(table_of("Replays", columns, rows))


@app.command()
def cancel(replay_id: ReplayId, url: Url = None, as_json: Json = False) -> None:
    """End a replay; what is in the outbox by then is published."""
    found = request("POST", service_url(url), f"/dead-letters/replays/{replay_id}/cancel")
    show_replay(found, as_json=as_json)


def narrowed(
    reason: str | None,
    stage: str | None,
    since: str | None,
    until: str | None,
    event_id: str | None,
    message_id: str | None,
) -> dict[str, Any]:
    """The filters that were given, as the service takes them; doubts a reason that no job here writes."""
    if reason and (doubt := doubt_of(reason)):
        err.print(f"[yellow]{escape(doubt)}[/]", highlight=False, soft_wrap=True)
    given = {
        "reason": reason,
        "stage": stage,
        "since": moment(since).isoformat() if since else None,
        "until": moment(until).isoformat() if until else None,
        "event_id": event_id,
        "message_id": message_id,
    }
    return {name: value for name, value in given.items() if value}


def doubt_of(reason: str) -> str:
    """A sentence about a reason that is not known here, which other pipelines may have; empty where it is."""
    known = (*REASONS, *JOB_REASONS)
    if reason in known:
        return ""
    near = difflib.get_close_matches(reason, known, 1)
    hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(known)}."
    return f"{reason} is no reason that this release knows. {hint}"


def await_end(base_url: str, found: dict[str, Any], wait_seconds: float) -> dict[str, Any]:
    """Shows the progress until the replay has ended or time is up; ends the command where it failed."""
    until = time.monotonic() + wait_seconds
    with progress_bar(transient=True) as progress:
        task = progress.add_task("letters", total=None)
        while found["state"] == "RUNNING" and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            found = request("GET", base_url, f"/dead-letters/replays/{found['id']}")
            progress.update(task, completed=found["read"], total=found["letters"])
    if found["state"] == "FAILED":
        fail(f"replay {found['id']} failed after {found['read']} letters: {found['cause']}")
    if found["state"] == "RUNNING" and wait_seconds:
        err.print(f"It goes on; `{command('dead-letters replays')}` shows how far it has come.")
    return found


def show_replay(found: dict[str, Any], *, as_json: bool) -> None:
    """Prints a replay as the service tells it."""
    if as_json:
        print_json(found)
        return
    out.print(f"[bold]{found['id']}[/] {found['state']}", highlight=False)
    would = "would be replayed" if found["dry_run"] else "replayed"
    facts = [
        (would, found["replayed"]),
        ("left out: replayed before, or a copy", found["repeated"]),
        ("left out: not whole", found["unreplayable"]),
    ]
    for label, value in facts:
        out.print(f"  {value:>10,} {label}", highlight=False)
    if found["cause"]:
        out.print(f"  {found['cause']}", highlight=False, markup=False)
