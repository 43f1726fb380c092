"""The fault switch of the local servers: outages that a test or a user turns on over the wire."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import grpc
import grpc.aio
import msgspec

SERVICE = "signin.local.Faults"


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happens to calls of `method` (a gRPC method name; `*` is every method).

    `code` is a gRPC status name, or empty to let the call pass after the delay. `share` is the part
    of the calls that is hit, `times` how many at most (0: no limit). With `after` the call takes
    effect first and only its answer is lost.
    """

    method: str = "*"
    code: str = ""
    delay_seconds: float = 0.0
    share: float = 1.0
    times: int = 0
    after: bool = False


class FaultSwitch:
    """The faults of one server. `calls` counts the calls that reached it, by method."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._hits: Counter[int] = Counter()
        self.calls: Counter[str] = Counter()

    def set(self, faults: Iterable[Fault]) -> None:
        """Replaces all faults; raises ValueError, and changes nothing, where one makes no sense."""
        replacement = list(faults)
        for fault in replacement:
            if fault.code and (fault.code == "OK" or fault.code not in grpc.StatusCode.__members__):
                raise ValueError(f"{fault.code} is not the name of a gRPC error status")
            if not 0 <= fault.share <= 1 or fault.delay_seconds < 0 or fault.times < 0:
                raise ValueError("share lies between 0 and 1, and delay_seconds and times are not negative")
        self._faults = replacement
        self._hits.clear()

    def draw(self, method: str) -> Fault | None:
        """Counts the call and picks the fault that hits it, if any."""
        self.calls[method] += 1
        for index, fault in enumerate(self._faults):
            if fault.method not in ("*", method) or (fault.times and self._hits[index] >= fault.times):
                continue
            if random.random() < fault.share:  # noqa: S311 - chance, not secrecy
                self._hits[index] += 1
                return fault
        return None

    async def strike(self, fault: Fault, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Waits and aborts as the fault says; returns only where the call may go on."""
        if fault.delay_seconds:
            await asyncio.sleep(fault.delay_seconds)
        if fault.code:
            await context.abort(grpc.StatusCode[fault.code], "injected by the fault switch")

    def handler(self) -> grpc.GenericRpcHandler:
        """The gRPC service through which the switch is reached; bodies are JSON."""

        async def set_faults(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            try:
                self.set(msgspec.json.decode(request, type=list[Fault]))
            except (msgspec.MsgspecError, ValueError) as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            return b"{}"

        async def get_calls(_request: bytes, _context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            return msgspec.json.encode(dict(self.calls))

        methods = {
            "Set": grpc.unary_unary_rpc_method_handler(set_faults),
            "Calls": grpc.unary_unary_rpc_method_handler(get_calls),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)


def set_faults(address: str, faults: Iterable[Fault], *, deadline_seconds: float = 5.0) -> None:
    """Sets the faults of the local server at `address`; an empty list ends them."""
    with grpc.insecure_channel(address) as channel:
        channel.unary_unary(f"/{SERVICE}/Set")(msgspec.json.encode(list(faults)), timeout=deadline_seconds)


def call_counts(address: str, *, deadline_seconds: float = 5.0) -> dict[str, int]:
    """How often each method of the local server at `address` was called."""
    with grpc.insecure_channel(address) as channel:
        answer = channel.unary_unary(f"/{SERVICE}/Calls")(b"", timeout=deadline_seconds)
    return msgspec.json.decode(answer, type=dict[str, int])
