"""`signin local faults`: see what an outage does."""

from __future__ import annotations

from typing import Annotated, Literal

import grpc
import typer

from service.cli.client import running_settings
from service.cli.terminal import fail, out
from service.local.faults import Fault, set_faults


def faults(
    server: Annotated[Literal["pubsub", "dataflow"], typer.Argument(help="Which server")],
    code: Annotated[str, typer.Option(help="gRPC status to answer with, such as UNAVAILABLE")] = "",
    method: Annotated[str, typer.Option(help="gRPC method, such as Publish; * is every one")] = "*",
    delay: Annotated[float, typer.Option(min=0, help="Seconds to wait first")] = 0.0,
    share: Annotated[float, typer.Option(min=0, max=1, help="Part of the calls that is hit")] = 1.0,
    times: Annotated[int, typer.Option(min=0, help="Calls that are hit; 0 is no limit")] = 0,
    after: Annotated[bool, typer.Option("--after", help="Lose the answer, not the call")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="End all faults of this server")] = False,
) -> None:
    """Turn on a fault of a local server, or end them with --clear."""
    settings = running_settings()
    address = settings.pubsub_emulator_host if server == "pubsub" else settings.dataflow_emulator_host
    if not address:
        fail("no local stack is running here; start one with `signin up` or `signin local`")
    if not clear and not code and not delay:
        fail("say --code, --delay or --clear", exit_code=2)
    fault = Fault(method=method, code=code, delay_seconds=delay, share=share, times=times, after=after)
    try:
        set_faults(address, [] if clear else [fault])
    except grpc.RpcError as error:
        fail(f"{server} at {address} refused: {error.details() or error.code().name}")
    out.print(f"{server}: " + ("no faults" if clear else f"{fault}"), highlight=False)
