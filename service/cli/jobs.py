"""`signin jobs`: launch, look at, follow, change and end jobs, through the service's own HTTP interface."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import typer

from service.cli.client import request, service_url
from service.cli.job_reports import followed, print_json, show_event, show_job, show_jobs, show_metrics
from service.cli.terminal import err, fail

TERMINAL_STATES = frozenset({"DRAINED", "CANCELLED", "FAILED", "DONE", "UPDATED", "REJECTED", "LOST"})

app = typer.Typer(no_args_is_help=True, help="Launch, look at, change and end Dataflow jobs.")

Url = Annotated[str | None, typer.Option("--url", help="Base URL of the service [env: SIGNIN_URL]")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs")]
Wait = Annotated[
    float, typer.Option("--wait", min=0, max=3600, help="Seconds to wait for the state asked for")
]
JobId = Annotated[str, typer.Argument(help="Id of the job, as `signin jobs list` shows it")]
Parameters = Annotated[
    list[str] | None, typer.Option("--parameter", help="A template parameter, as name=value")
]
Environment = Annotated[
    list[str] | None, typer.Option("--environment", help="A field of the environment, as name=value")
]
Key = Annotated[str | None, typer.Option("--key", help="Idempotency-Key: sent twice, it happens once")]
Importance = Literal["DEBUG", "DETAILED", "BASIC", "WARNING", "ERROR"]


@app.command()
def launch(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    url: Url = None,
    name: Annotated[str | None, typer.Option(help="Base of the job's name")] = None,
    pipeline: Annotated[str, typer.Option(help="Which pipeline")] = "user-signin",
    parameter: Parameters = None,
    environment: Environment = None,
    shared_subscription: Annotated[
        bool, typer.Option("--shared-subscription", help="Even where another job reads the subscription")
    ] = False,
    restart: Annotated[int, typer.Option(min=0, max=100, help="Restarts after a failure, at most")] = 0,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check, launch nothing")] = False,
    key: Key = None,
    wait: Wait = 0.0,
    as_json: Json = False,
) -> None:
    """Launch the job that writes sign-ins to BigQuery."""
    body: dict[str, Any] = {"pipeline": pipeline, "parameters": named(parameter, "--parameter")}
    body |= {"name": name} if name else {}
    body |= {"environment": typed(environment)} if environment else {}
    body |= {"shared_subscription": True} if shared_subscription else {}
    body |= {"restart_policy": "on-failure", "restart_limit": restart} if restart else {}
    base_url = service_url(url)
    query = {"validate_only": validate_only}
    job = request("POST", base_url, "/jobs", json=body, params=query, headers=keyed(key))
    if validate_only:
        print_json(job)
        return
    if wait:
        err.print(f"the launch of job {job['id']} is committed", highlight=False)
        job = await_state(base_url, job["id"], "RUNNING", wait, or_done=True)
        if job["state"] == "DONE":
            err.print(f"job {job['id']} has run to its end", highlight=False)
    show_job(job, as_json=as_json)
    if job["state"] == "REJECTED":
        raise typer.Exit(1)  # the service has answered; what was asked for has failed all the same


@app.command("list")
def list_jobs(
    url: Url = None,
    active: Annotated[bool | None, typer.Option("--active/--ended", help="Only these")] = None,
    state: Annotated[list[str] | None, typer.Option(help="Only in this state; may be repeated")] = None,
    name: Annotated[str | None, typer.Option(help="Only of this name, or base of a name")] = None,
    pipeline: Annotated[str | None, typer.Option(help="Only of this pipeline")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
    page_token: Annotated[str | None, typer.Option(help="`next_page_token` of the page before")] = None,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    asked = {"active": active, "state": state, "name": name, "pipeline": pipeline, "page_token": page_token}
    query = {"page_size": limit} | {key: value for key, value in asked.items() if value is not None}
    page = request("GET", service_url(url), "/jobs", params=query)
    if as_json:
        print_json(page)
    else:
        show_jobs("Jobs", ("id", "name", "state", "created_at", "cause"), page["jobs"])


@app.command()
def show(job_id: JobId, url: Url = None, as_json: Json = False) -> None:
    """Show one job: its state, what it counted, and what may be done with it."""
    show_job(request("GET", service_url(url), f"/jobs/{job_id}"), as_json=as_json)


@app.command()
def drain(
    job_id: JobId,
    url: Url = None,
    deadline: Annotated[int | None, typer.Option(min=1, help="Seconds until the drain is overdue")] = None,
    on_deadline: Annotated[Literal["wait", "cancel"] | None, typer.Option(help="What happens then")] = None,
    key: Key = None,
    wait: Wait = 0.0,
    as_json: Json = False,
) -> None:
    """Let the job finish what it has read, then end it. What it has not read stays in the subscription."""
    asked = {"deadline_seconds": deadline, "on_deadline": on_deadline}
    body = {name: value for name, value in asked.items() if value is not None}
    job = request("POST", service_url(url), f"/jobs/{job_id}/drain", json=body, headers=keyed(key))
    show_later(service_url(url), job, "DRAINED", wait, as_json=as_json)


@app.command()
def cancel(job_id: JobId, url: Url = None, key: Key = None, wait: Wait = 0.0, as_json: Json = False) -> None:
    """End the job at once. What it had not acknowledged is delivered again to the next job."""
    job = request("POST", service_url(url), f"/jobs/{job_id}/cancel", headers=keyed(key))
    show_later(service_url(url), job, "CANCELLED", wait, as_json=as_json)


@app.command("force-cancel")
def force_cancel(
    job_id: JobId,
    url: Url = None,
    yes: Annotated[bool, typer.Option("--yes", help="I know that this may lose data")] = False,
    wait: Wait = 0.0,
    as_json: Json = False,
) -> None:
    """End a job whose cancel hangs, 30 minutes after it. It may lose data and leave resources behind."""
    if not yes:
        fail("this may lose what is in flight; say --yes if that is meant", exit_code=2)
    body = {"confirm": "FORCE-CANCEL"}
    job = request("POST", service_url(url), f"/jobs/{job_id}/force-cancel", json=body)
    show_later(service_url(url), job, "CANCELLED", wait, as_json=as_json)


@app.command()
def update(
    job_id: JobId,
    url: Url = None,
    parameter: Parameters = None,
    environment: Environment = None,
    template: Annotated[str | None, typer.Option(help="gs:// path of another version")] = None,
    rename: Annotated[
        list[str] | None, typer.Option(help="old=new name of a transform; old= for one that is gone")
    ] = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Replace the running job by a new version of itself; where that fails, it goes on as it is."""
    body: dict[str, Any] = {"parameters": named(parameter, "--parameter"), "environment": typed(environment)}
    body |= {"transform_name_mappings": named(rename, "--rename")}
    body |= {"template_path": template} if template else {}
    job = request("POST", service_url(url), f"/jobs/{job_id}/update", json=body, headers=keyed(key))
    show_job(job, as_json=as_json)


@app.command()
def scale(
    job_id: JobId,
    url: Url = None,
    least: Annotated[int | None, typer.Option("--min", min=1, help="Least workers")] = None,
    most: Annotated[int | None, typer.Option("--max", min=1, help="Most workers")] = None,
    as_json: Json = False,
) -> None:
    """Change the bounds of the workers of a job."""
    body = {"min_workers": least, "max_workers": most}
    show_job(request("PATCH", service_url(url), f"/jobs/{job_id}/autoscaling", json=body), as_json=as_json)


@app.command()
def events(
    job_id: JobId,
    url: Url = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job has ended")] = False,
    after: Annotated[int, typer.Option(min=0, help="Entries after this sequence")] = 0,
    as_json: Json = False,
) -> None:
    """Show what happened to a job; with --json one object a line."""
    base_url, path = service_url(url), f"/jobs/{job_id}/events"
    if follow:
        for event in followed(base_url, path, after):
            show_event(event, as_json=as_json)
        return
    while found := request("GET", base_url, path, params={"after": after, "limit": 1000})["events"]:
        for event in found:
            show_event(event, as_json=as_json)
        after = found[-1]["sequence"]


@app.command()
def messages(
    job_id: JobId,
    url: Url = None,
    importance: Annotated[Importance, typer.Option(help="Only of this gravity or more")] = "BASIC",
    since: Annotated[str | None, typer.Option(help="RFC 3339 time")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 100,
    as_json: Json = False,
) -> None:
    """Show what Dataflow says of a job, oldest first."""
    query = {"importance": importance, "page_size": limit} | ({"since": since} if since else {})
    page = request("GET", service_url(url), f"/jobs/{job_id}/messages", params=query)
    if as_json:
        print_json(page)
    else:
        show_jobs("Messages", ("at", "importance", "text"), page["messages"])


@app.command()
def metrics(job_id: JobId, url: Url = None, as_json: Json = False) -> None:
    """Show what a job does now, and what waits for it."""
    found = request("GET", service_url(url), f"/jobs/{job_id}/metrics")
    if as_json:
        print_json(found)
    else:
        show_metrics(found)


@app.command()
def unmanaged(url: Url = None, region: str | None = None, as_json: Json = False) -> None:
    """List active Dataflow jobs that somebody else launched."""
    query = {"region": region} if region else {}
    page = request("GET", service_url(url), "/jobs/unmanaged", params=query)
    if as_json:
        print_json(page)
    else:
        show_jobs("Unmanaged", ("dataflow_job_id", "name", "state", "created_at"), page["jobs"])


@app.command()
def adopt(
    dataflow_job_id: Annotated[str, typer.Argument(help="As `signin jobs unmanaged` shows it")],
    url: Url = None,
    region: str | None = None,
    as_json: Json = False,
) -> None:
    """Manage a Dataflow job that somebody else launched from now on."""
    body = {"dataflow_job_id": dataflow_job_id} | ({"region": region} if region else {})
    show_job(request("POST", service_url(url), "/jobs/adopt", json=body), as_json=as_json)


def show_later(base_url: str, job: dict[str, Any], state: str, wait: float, *, as_json: bool) -> None:
    """Prints the job, when it is in `state` if the caller waits for that."""
    show_job(await_state(base_url, job["id"], state, wait) if wait else job, as_json=as_json)


def keyed(key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": key} if key else {}


def named(pairs: list[str] | None, option: str) -> dict[str, str]:
    """What was given as name=value; ends the command where something else was."""
    found: dict[str, str] = {}
    for text in pairs or []:
        name, separator, value = text.partition("=")
        if not separator or not name:
            fail(f"{option} {text}: write it as name=value", exit_code=2)
        found[name] = value
    return found


def typed(pairs: list[str] | None) -> dict[str, Any]:
    """The same with numbers, true and false, and lists between commas, as the environment needs them."""
    found: dict[str, Any] = {}
    for name, value in named(pairs, "--environment").items():
        if value.isdecimal():
            found[name] = int(value)
        elif value in ("true", "false"):
            found[name] = value == "true"
        else:
            found[name] = value.split(",") if name == "additional_experiments" else value
    return found


def await_state(
    base_url: str, job_id: str, state: str, wait_seconds: float, *, or_done: bool = False
) -> dict[str, Any]:
    """Polls the job until it is in `state`; ends the command when it cannot get there or time is up.

    With `or_done` a job that has ended by itself was in `state` before, between two looks.
    """
    until = time.monotonic() + wait_seconds
    with err.status(f"waiting for {state}"):
        while True:
            job: dict[str, Any] = request("GET", base_url, f"/jobs/{job_id}")
            if job["state"] == state or (or_done and job["state"] == "DONE"):
                return job
            if job["state"] in TERMINAL_STATES:
                fail(f"job {job_id} ended as {job['state']}: {job.get('cause') or 'no cause given'}")
            if time.monotonic() >= until:
                fail(f"job {job_id} is still {job['state']} after {wait_seconds:g} s")
            time.sleep(0.25)
