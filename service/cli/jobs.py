"""`signin jobs`: launch, list, show, drain, cancel, through the service's own HTTP interface."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from service.cli.client import request, service_url
from service.cli.terminal import err, fail, out, styled_state, table_of

TERMINAL_STATES = frozenset(
    {"DRAINED", "CANCELLED", "FAILED", "DONE", "UPDATED", "REJECTED", "LOST", "STOPPED"}
)

app = typer.Typer(no_args_is_help=True, help="Launch, look at and end the Dataflow job.")

Url = Annotated[str | None, typer.Option("--url", help="Base URL of the service [env: SIGNIN_URL]")]
Wait = Annotated[
    float, typer.Option("--wait", min=0, max=3600, help="Seconds to wait for the state asked for")
]
JobId = Annotated[str, typer.Argument(help="Id of the job, as `signin jobs list` shows it")]


@app.command()
def launch(
    url: Url = None,
    name: Annotated[str | None, typer.Option(help="Base of the job's name")] = None,
    pipeline: Annotated[str, typer.Option(help="Which pipeline")] = "user-signin",
    parameter: Annotated[list[str] | None, typer.Option(help="A template parameter, as name=value")] = None,
    wait: Wait = 0.0,
) -> None:
    """Launch the job that writes sign-ins to BigQuery."""
    parameters = dict(split_parameter(text) for text in parameter or [])
    body = {"pipeline": pipeline, "parameters": parameters} | ({"name": name} if name else {})
    base_url = service_url(url)
    job = request("POST", base_url, "/jobs", json=body)
    if wait:
        err.print(f"job {job['id']} is launched", highlight=False)
        job = await_state(base_url, job["id"], "RUNNING", wait)
    show_job(job)


@app.command("list")
def list_jobs(
    url: Url = None,
    active: Annotated[bool | None, typer.Option("--active/--ended", help="Only these")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
) -> None:
    """List jobs, newest first."""
    query: dict[str, Any] = {"page_size": limit} | ({} if active is None else {"active": active})
    jobs = request("GET", service_url(url), "/jobs", params=query)["jobs"]
    rows = [(job["id"], job["name"], job["state"], job["created_at"], job.get("cause")) for job in jobs]
    out.print(table_of("Jobs", ("id", "name", "state", "created", "cause"), rows))


@app.command()
def show(job_id: JobId, url: Url = None) -> None:
    """Show one job: its state, what it counted, and what may be done with it."""
    show_job(request("GET", service_url(url), f"/jobs/{job_id}"))


@app.command()
def drain(job_id: JobId, url: Url = None, wait: Wait = 0.0) -> None:
    """Let the job finish what it has read, then end it. What it has not read stays in the subscription."""
    stop(service_url(url), job_id, "drain", "DRAINED", wait)


@app.command()
def cancel(job_id: JobId, url: Url = None, wait: Wait = 0.0) -> None:
    """End the job at once. What it had not acknowledged is delivered again to the next job."""
    stop(service_url(url), job_id, "cancel", "CANCELLED", wait)


def stop(base_url: str, job_id: str, action: str, state: str, wait_seconds: float) -> None:
    job = request("POST", base_url, f"/jobs/{job_id}/{action}")
    show_job(await_state(base_url, job_id, state, wait_seconds) if wait_seconds else job)


def split_parameter(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        fail(f"--parameter {text}: write it as name=value", exit_code=2)
    return name, value


def await_state(base_url: str, job_id: str, state: str, wait_seconds: float) -> dict[str, Any]:
    """Polls the job until it is in `state`; ends the command when it cannot get there or time is up."""
    until = time.monotonic() + wait_seconds
    with err.status(f"waiting for {state}"):
        while True:
            job: dict[str, Any] = request("GET", base_url, f"/jobs/{job_id}")
            if job["state"] == state:
                return job
            if job["state"] in TERMINAL_STATES:
                fail(f"job {job_id} ended as {job['state']}: {job.get('cause') or 'no cause given'}")
            if time.monotonic() >= until:
                fail(f"job {job_id} is still {job['state']} after {wait_seconds:g} s")
            time.sleep(0.25)


def show_job(job: dict[str, Any]) -> None:
    """Prints a job as the service tells it."""
    facts = [
        ("name", job["name"]),
        ("pipeline", job.get("pipeline")),
        ("dataflow job", job.get("dataflow_job_id")),
        ("asked for", job.get("requested_state")),
        ("created", job.get("created_at")),
        ("observed", job.get("observed_at")),
        ("cause", job.get("cause")),
    ]
    out.print(f"[bold]{job['id']}[/] {styled_state(job['state'])}")
    for label, value in facts:
        if value:
            out.print(f"  [dim]{label:<13}[/]{value}", highlight=False)
    for name, value in sorted((job.get("counters") or {}).items()):
        out.print(f"  [dim]{name:<30}[/]{value:,}", highlight=False)
