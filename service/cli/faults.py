"""`signin local faults`: see what an outage does."""

from __future__ import annotations

from typing import Annotated, Literal

import grpc
import httpx
import msgspec
import typer

from service.cli.client import running_settings
from service.cli.terminal import fail, out
from service.local.faults import Fault, set_faults


def faults(  # noqa: PLR0913, PLR0917 - one for each option
    server: Annotated[Literal["pubsub", "dataflow", "bigquery"], typer.Argument(help="Which server")],
    code: Annotated[str, typer.Option(help="Status to answer with: UNAVAILABLE, or 503 for bigquery")] = "",
    method: Annotated[str, typer.Option(help="Method, such as Publish or insertAll; * is every one")] = "*",
    delay: Annotated[float, typer.Option(min=0, help="Seconds to wait first")] = 0.0,
    share: Annotated[float, typer.Option(min=0, max=1, help="Part of the calls that is hit")] = 1.0,
    times: Annotated[int, typer.Option(min=0, help="Calls that are hit; 0 is no limit")] = 0,
    after: Annotated[bool, typer.Option("--after", help="Lose the answer, not the call")] = False,
    refuse: Annotated[str, typer.Option(help="bigquery: refuse the sign-ins that contain this text")] = "",
    clear: Annotated[bool, typer.Option("--clear", help="End all faults of this server")] = False,
) -> None:
    """Turn on a fault of a local server, or end them with --clear."""
    settings = running_settings()
    address = {
        "pubsub": settings.pubsub_emulator_host,
        "dataflow": settings.dataflow_emulator_host,
        "bigquery": settings.bigquery_emulator_host,
    }[server]
    if not address:
        fail("no local stack is running here; start one with `signin up` or `signin local`")
    if not clear and not code and not delay and not refuse:
        fail("say --code, --delay, --refuse or --clear", exit_code=2)
    fault = Fault(method=method, code=code, delay_seconds=delay, share=share, times=times, after=after)
    if server == "bigquery":
        table = settings.table.rpartition(".")[2] if refuse else ""
        rows = {"refuse": refuse, "table": table}
        _set_http_faults(address, [] if clear else [msgspec.structs.asdict(fault) | rows])
        out.print(f"bigquery: {'no faults' if clear else fault}", highlight=False)
        return
    try:
        set_faults(address, [] if clear else [fault])
    except grpc.RpcError as error:
        fail(f"{server} at {address} refused: {error.details() or error.code().name}")
    out.print(f"{server}: " + ("no faults" if clear else f"{fault}"), highlight=False)


def _set_http_faults(address: str, faults: list[dict[str, object]]) -> None:
    try:
        answer = httpx.post(f"{address}/signin/faults", json=faults, timeout=5)
    except httpx.HTTPError as error:
        fail(f"bigquery at {address} does not answer: {error}")
    if answer.status_code != httpx.codes.OK:
        fail(f"bigquery at {address} refused: {answer.text}")
