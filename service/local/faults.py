"""The fault switch of the local servers: outages that a test or a user turns on over the wire."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import grpc
import grpc.aio
import msgspec

SERVICE = "signin.local.Faults"
ANY_METHOD = "*"


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happens to calls of `method` (a gRPC method name; `*` is every method).

    Which calls: the first `skip` pass, of the others the part `share` is hit, at most `times` (0: no
    limit). What happens: the call waits for `delay_seconds`, and with `hold` until the faults are set
    anew, then fails with the gRPC status `code` and the text `message`; without a code it goes on.
    With `after` it takes effect first and only its answer waits or is lost. With `late` it takes effect
    even where the caller has gone while it waited.

    On Dataflow a fault may distort what a method shows instead: `hide` leaves out the jobs, their
    labels, or a whole location that could not be reached, and `state` is shown in place of the jobs'
    own (a name without prefix, or the number of one that no client knows). Both concern the job whose
    id or name is `job` (empty: all), as long as it is younger than `younger_than_seconds` (0: always).
    """

    method: str = ANY_METHOD
    code: str = ""
    delay_seconds: float = 0.0
    share: float = 1.0
    times: int = 0
    after: bool = False
    skip: int = 0
    hold: bool = False
    late: bool = False
    message: str = ""
    hide: Literal["", "job", "labels", "location"] = ""
    state: str = ""
    job: str = ""
    younger_than_seconds: float = 0.0

    @property
    def distorts(self) -> bool:
        """Whether the call itself goes well, and only what it shows is not so."""
        return bool(self.hide or self.state)


@dataclass(frozen=True, slots=True)
class _Held:
    method: str
    release: asyncio.Future[None]


class FaultSwitch:
    """The faults of one server. `calls` counts the calls that reached it, by method.

    Once `methods` are known, here or by `know`, a fault of another one is refused.
    """

    shows_jobs = False  # whether it has jobs whose look can be distorted

    def __init__(self, methods: Iterable[str] = ()) -> None:
        self._faults: list[Fault] = []
        self._met: Counter[int] = Counter()
        self._hits: Counter[int] = Counter()
        self._methods = set(methods)
        self._held: list[_Held] = []
        self._arrived = asyncio.Condition()
        self.calls: Counter[str] = Counter()

    def know(self, methods: Iterable[str]) -> None:
        """Names more methods of the server."""
        self._methods.update(methods)

    def set(self, faults: Iterable[Fault]) -> None:
        """Replaces all faults and lets the held calls go.

        Raises ValueError, and changes nothing, where a fault makes no sense.
        """
        replacement = list(faults)
        for fault in replacement:
            self.check(fault)
        self._faults = replacement
        self._met.clear()
        self._hits.clear()
        for held in list(self._held):
            held.release.get_loop().call_soon_threadsafe(_release, held.release)

    def check(self, fault: Fault) -> None:
        """Raises ValueError where the fault makes no sense on this server."""
        self.check_code(fault.code)
        if not 0 <= fault.share <= 1:
            raise ValueError("share lies between 0 and 1")
        if min(fault.delay_seconds, fault.times, fault.skip, fault.younger_than_seconds) < 0:
            raise ValueError("times, skip and seconds are not negative")
        if self._methods and fault.method not in (ANY_METHOD, *self._methods):
            raise ValueError(
                f"{fault.method} is not a method here; there are {', '.join(sorted(self._methods))}"
            )
        if fault.distorts and not self.shows_jobs:
            raise ValueError("hide and state are faults of the local Dataflow only")

    def check_code(self, code: str) -> None:
        """Raises ValueError where `code` is not an error of this server."""
        if code and (code == "OK" or code not in grpc.StatusCode.__members__):
            raise ValueError(f"{code} is not the name of a gRPC error status")

    def forbids(self, method: str) -> bool:
        """Whether a fault refuses the method for lack of permission."""
        return any(
            fault.code == "PERMISSION_DENIED" and fault.method in (ANY_METHOD, method)
            for fault in self._faults
        )

    def draw(self, method: str) -> Fault | None:
        """Counts the call and picks the fault that hits it, if any."""
        self.calls[method] += 1
        for index, fault in enumerate(self._faults):
            if not fault.distorts and self._hit(index, fault, method):
                return fault
        return None

    def distortions(self, method: str, *job: str) -> list[Fault]:
        """The faults that distort this call's answer, about the job of this id and name if it is given."""
        return [
            fault
            for index, fault in enumerate(self._faults)
            if fault.distorts and (not job or fault.job in ("", *job)) and self._hit(index, fault, method)
        ]

    def _hit(self, index: int, fault: Fault, method: str) -> bool:
        if fault.method not in (ANY_METHOD, method) or (fault.times and self._hits[index] >= fault.times):
            return False
        self._met[index] += 1
        if self._met[index] <= fault.skip or random.random() >= fault.share:  # noqa: S311 - not secrecy
            return False
        self._hits[index] += 1
        return True

    async def wait(self, fault: Fault, method: str) -> None:
        """Waits as long as the fault makes a call wait."""
        if fault.delay_seconds:
            await asyncio.sleep(fault.delay_seconds)
        if fault.hold:
            async with self._holding(method) as release:
                await release

    async def until_held(self, method: str = ANY_METHOD, count: int = 1) -> None:
        """Returns as soon as `count` calls of the method are held."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: self.held(method) >= count)

    def held(self, method: str = ANY_METHOD) -> int:
        """How many calls of the method are held now."""
        return sum(method in (ANY_METHOD, held.method) for held in self._held)

    def close(self) -> None:
        """Breaks off the held calls; for the end of the server."""
        self._faults = []
        for held in list(self._held):
            held.release.cancel()

    @contextlib.asynccontextmanager
    async def _holding(self, method: str) -> AsyncIterator[asyncio.Future[None]]:
        held = _Held(method, asyncio.get_running_loop().create_future())
        self._held.append(held)
        try:
            async with self._arrived:
                self._arrived.notify_all()
            yield held.release
        finally:
            self._held.remove(held)

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

        async def wait_held(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            try:
                wanted = msgspec.json.decode(request, type=_Wait)
            except msgspec.MsgspecError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            await self.until_held(wanted.method, wanted.count)
            return b"{}"

        methods = {
            "Set": grpc.unary_unary_rpc_method_handler(set_faults),
            "Calls": grpc.unary_unary_rpc_method_handler(get_calls),
            "Wait": grpc.unary_unary_rpc_method_handler(wait_held),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)


class _Wait(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    method: str = ANY_METHOD
    count: int = 1


def set_faults(address: str, faults: Iterable[Fault], *, deadline_seconds: float = 5.0) -> None:
    """Sets the faults of the local server at `address`; an empty list ends them, and held calls go on."""
    _call(address, "Set", msgspec.json.encode(list(faults)), deadline_seconds)


def call_counts(address: str, *, deadline_seconds: float = 5.0) -> dict[str, int]:
    """How often each method of the local server at `address` was called."""
    return msgspec.json.decode(_call(address, "Calls", b"", deadline_seconds), type=dict[str, int])


def wait_held(
    address: str, method: str = ANY_METHOD, *, count: int = 1, deadline_seconds: float = 10.0
) -> None:
    """Returns as soon as `count` calls of the method are held at `address`. Raises RpcError when too late."""
    _call(address, "Wait", msgspec.json.encode(_Wait(method, count)), deadline_seconds)


def _call(address: str, method: str, body: bytes, deadline_seconds: float) -> bytes:
    with grpc.insecure_channel(address) as channel:
        answer: bytes = channel.unary_unary(f"/{SERVICE}/{method}")(body, timeout=deadline_seconds)
    return answer


def _release(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
