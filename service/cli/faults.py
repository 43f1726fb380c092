"""`signin local faults`: see what an outage does."""

from __future__ import annotations

from typing import Annotated, Literal

import grpc
import httpx
import typer

from service.cli.client import running_settings
from service.cli.terminal import fail, out
from service.config import Settings
from service.local.faults import set_faults
from service.local.http_faults import HttpFault, set_http_faults

Server = Literal["pubsub", "dataflow", "bigquery"]
Hidden = Literal["job", "labels", "location"]


def faults(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    server: Annotated[Server, typer.Argument(help="Which server")],
    code: Annotated[
        str, typer.Option(help="gRPC status to answer with, such as UNAVAILABLE; of bigquery an HTTP status")
    ] = "",
    method: Annotated[
        str, typer.Option(help="gRPC method, such as Publish, of bigquery such as insertAll; * is every one")
    ] = "*",
    delay: Annotated[float, typer.Option(min=0, help="Seconds to wait first")] = 0.0,
    share: Annotated[float, typer.Option(min=0, max=1, help="Part of the calls that is hit")] = 1.0,
    skip: Annotated[int, typer.Option(min=0, help="Calls that pass first")] = 0,
    times: Annotated[int, typer.Option(min=0, help="Calls that are hit; 0 is no limit")] = 0,
    after: Annotated[bool, typer.Option("--after", help="Lose the answer, not the call")] = False,
    hold: Annotated[bool, typer.Option("--hold", help="Keep calls waiting until the next change")] = False,
    late: Annotated[bool, typer.Option("--late", help="Take effect though the caller has gone")] = False,
    message: Annotated[str, typer.Option(help="The text that the status comes with")] = "",
    hide: Annotated[Hidden | None, typer.Option(help="What dataflow leaves out where it shows jobs")] = None,
    state: Annotated[str, typer.Option(help="The state that dataflow shows, a name or a number")] = "",
    job: Annotated[str, typer.Option(help="Id or name of the one job that --hide and --state mean")] = "",
    younger_than: Annotated[
        float, typer.Option(min=0, help="Seconds since their launch in which jobs are hidden; 0 is always")
    ] = 0.0,
    refuse: Annotated[str, typer.Option(help="bigquery: refuse the sign-ins that contain this text")] = "",
    clear: Annotated[bool, typer.Option("--clear", help="End all faults of this server")] = False,
) -> None:
    """Turn on a fault of a local server, or end them with --clear."""
    if not (clear or code or delay or hold or hide or state or refuse):
        fail("say --code, --delay, --hold, --hide, --state, --refuse or --clear", exit_code=2)
    settings = running_settings()
    fault = HttpFault(
        method=method,
        code=code,
        delay_seconds=delay,
        share=share,
        skip=skip,
        times=times,
        after=after,
        hold=hold,
        late=late,
        message=message,
        hide=hide or "",
        state=state,
        job=job,
        younger_than_seconds=younger_than,
        refuse=refuse,
        table=settings.table.rpartition(".")[2] if refuse else "",
    )
    _set(server, settings, [] if clear else [fault])
    out.print(f"{server}: " + ("no faults" if clear else _described(fault)), highlight=False)


def _set(server: Server, settings: Settings, wanted: list[HttpFault]) -> None:
    if server != "bigquery" and any(fault.refuse for fault in wanted):
        fail("--refuse is a fault of bigquery only", exit_code=2)
    addresses = {
        "pubsub": settings.pubsub_emulator_host,
        "dataflow": settings.dataflow_emulator_host,
        "bigquery": settings.bigquery_emulator_host,
    }
    address = addresses[server]
    if not address:
        fail("no local stack is used here; start one with `signin up` or `signin local`")
    try:
        if server == "bigquery":
            set_http_faults(address, wanted)
        else:
            set_faults(address, [fault.everywhere() for fault in wanted])
    except ValueError as error:
        fail(f"{server} at {address} refused: {error}")
    except grpc.RpcError as error:
        fail(f"{server} at {address} refused: {error.details() or error.code().name}")
    except httpx.HTTPError as error:
        fail(f"{server} at {address} refused: {type(error).__name__}")


def _described(fault: HttpFault) -> str:
    """The fault with what was said of it, and nothing else."""
    default = HttpFault()
    said = {name: getattr(fault, name) for name in fault.__struct_fields__}
    return "calls of {}: {}".format(
        "every method" if fault.method == "*" else fault.method,
        ", ".join(
            f"{name}={value}"
            for name, value in said.items()
            if name != "method" and value != getattr(default, name)
        ),
    )
