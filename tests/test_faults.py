"""The fault switch of the local servers, reached as a user reaches it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import grpc.aio
import pytest

from service.local.faults import Fault, FaultSwitch, call_counts, set_faults, wait_held
from service.local.grpc_server import Context, guarded, start_server
from service.local.http_faults import HttpFaultSwitch


@pytest.mark.parametrize(
    ("fault", "method", "hits"),
    [
        (Fault(code="UNAVAILABLE"), "Publish", 5),
        (Fault(method="Publish", code="UNAVAILABLE"), "Publish", 5),
        (Fault(method="Pull", code="UNAVAILABLE"), "Publish", 0),
        (Fault(code="UNAVAILABLE", times=2), "Publish", 2),
        (Fault(code="UNAVAILABLE", skip=3), "Publish", 2),
        (Fault(code="UNAVAILABLE", skip=1, times=3), "Publish", 3),
        (Fault(code="UNAVAILABLE", share=0), "Publish", 0),
    ],
)
def test_a_fault_hits_its_method_as_often_as_it_says(fault: Fault, method: str, hits: int) -> None:
    switch = FaultSwitch()
    switch.set([fault])
    assert sum(switch.draw(method) is fault for _ in range(5)) == hits
    assert switch.calls == {method: 5}


def test_the_first_fault_that_applies_wins_and_the_next_one_follows() -> None:
    switch = FaultSwitch()
    once, then = Fault(code="ABORTED", times=1), Fault(code="UNAVAILABLE")
    switch.set([once, then])
    assert [switch.draw("Pull") for _ in range(3)] == [once, then, then]
    switch.set([once])
    assert [switch.draw("Pull") for _ in range(2)] == [once, None], "set begins the count anew"


def test_a_share_of_the_calls_is_hit() -> None:
    switch = FaultSwitch()
    switch.set([Fault(code="UNAVAILABLE", share=0.5)])
    assert 300 < sum(switch.draw("Pull") is not None for _ in range(1000)) < 700


@pytest.mark.parametrize(
    "fault",
    [
        Fault(code="NOPE"),
        Fault(code="OK"),
        Fault(share=1.1),
        Fault(delay_seconds=-1),
        Fault(times=-1),
        Fault(skip=-1),
        Fault(hide="job"),  # a switch of a server that has no jobs
        Fault(state="RUNNING"),
    ],
)
def test_a_fault_that_makes_no_sense_changes_nothing(fault: Fault) -> None:
    switch = FaultSwitch()
    good = Fault(code="UNAVAILABLE")
    switch.set([good])
    with pytest.raises(ValueError, match=r"status|share|negative|Dataflow"):
        switch.set([fault])
    assert switch.draw("Pull") is good


def test_a_fault_of_a_method_that_the_server_does_not_have_is_refused() -> None:
    switch = FaultSwitch(["Publish"])
    switch.know(["Pull"])
    with pytest.raises(ValueError, match="Publsh is not a method here; there are Publish, Pull"):
        switch.set([Fault(method="Publsh", code="ABORTED")])
    switch.set([Fault(method="Publish", code="ABORTED"), Fault(method="*")])


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(hold=True), "gRPC servers only"),
        (Fault(code="503", late=True), "gRPC servers only"),
        (Fault(code="UNAVAILABLE"), "not an HTTP error status"),
        (Fault(code="200"), "not an HTTP error status"),
        (Fault(hide="job"), "local Dataflow only"),
    ],
)
def test_bigquery_has_faults_of_http_only(fault: Fault, said: str) -> None:
    switch = HttpFaultSwitch()
    with pytest.raises(ValueError, match=said):
        switch.set([fault])
    switch.set([Fault(code="503")])
    assert switch.draw("insertAll") == Fault(code="503")


class Echo:
    """A server with the method `Say`, which repeats what it is sent and notes it down."""

    def __init__(self) -> None:
        self.switch = FaultSwitch()
        self.said: list[bytes] = []
        self.effect = asyncio.Event()

    async def say(self, request: bytes, context: Context) -> bytes:
        async def effect() -> bytes:
            self.said.append(request)
            self.effect.set()
            return request

        return await guarded("Say", context, self.switch, effect)


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, str]]:
    echo = Echo()
    say = grpc.method_handlers_generic_handler("Echo", {"Say": grpc.unary_unary_rpc_method_handler(echo.say)})
    server, address = await start_server([say, echo.switch.handler()], "127.0.0.1", 0)
    yield echo, address
    echo.switch.close()
    await server.stop(0)


@pytest.mark.parametrize(("after", "effects"), [(False, 0), (True, 1)])
async def test_a_call_is_held_until_it_is_released(echo: tuple[Echo, str], after: bool, effects: int) -> None:
    server, address = echo
    await asyncio.to_thread(set_faults, address, [Fault(method="Say", hold=True, after=after)])
    async with grpc.aio.insecure_channel(address) as channel:
        calls = [asyncio.ensure_future(channel.unary_unary("/Echo/Say")(b"x", timeout=10)) for _ in range(2)]
        await asyncio.to_thread(wait_held, address, "Say", count=2)
        assert (server.switch.held("Say"), server.switch.held("Other")) == (2, 0)
        assert len(server.said) == 2 * effects
        assert not any(call.done() for call in calls)
        await asyncio.to_thread(set_faults, address, [])
        assert await asyncio.gather(*calls) == [b"x", b"x"]
    assert len(server.said) == 2
    assert server.switch.held() == 0


@pytest.mark.parametrize(
    ("fault", "effects"),
    [
        (Fault(hold=True), 0),
        (Fault(hold=True, late=True), 1),
        (Fault(hold=True, after=True), 1),
    ],
)
async def test_the_death_of_the_caller_ends_a_held_call_unless_it_is_late(
    echo: tuple[Echo, str], fault: Fault, effects: int
) -> None:
    server, address = echo
    server.switch.set([fault])
    async with grpc.aio.insecure_channel(address) as channel:
        call = asyncio.ensure_future(channel.unary_unary("/Echo/Say")(b"x", timeout=10))
        await server.switch.until_held("Say")
    with pytest.raises(asyncio.CancelledError):
        await call
    if not fault.late:
        await asyncio.wait_for(_until(lambda: not server.switch.held()), 5)
    server.switch.set([])
    if effects:
        await asyncio.wait_for(server.effect.wait(), 5)
    assert len(server.said) == effects


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the end of a call has no event
        await asyncio.sleep(0.005)


async def test_a_released_call_fails_as_its_fault_says(echo: tuple[Echo, str]) -> None:
    server, address = echo
    fault = Fault(hold=True, code="RESOURCE_EXHAUSTED", message="Quota exceeded")
    server.switch.set([fault])
    async with grpc.aio.insecure_channel(address) as channel:
        call = asyncio.ensure_future(channel.unary_unary("/Echo/Say")(b"x", timeout=10))
        await server.switch.until_held()
        server.switch.set([])
        with pytest.raises(grpc.aio.AioRpcError, match="Quota exceeded") as caught:
            await call
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.said == []


async def test_waiting_for_a_held_call_ends_at_its_deadline(echo: tuple[Echo, str]) -> None:
    _, address = echo
    with pytest.raises(grpc.RpcError) as caught:
        await asyncio.to_thread(wait_held, address, "Say", deadline_seconds=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_faults_are_set_and_calls_are_counted_over_the_wire() -> None:
    switch = FaultSwitch()
    server, address = await start_server([switch.handler()], "127.0.0.1", 0)
    await asyncio.to_thread(set_faults, address, [Fault(method="Pull", code="ABORTED", delay_seconds=0.5)])
    assert switch.draw("Pull") == Fault(method="Pull", code="ABORTED", delay_seconds=0.5)
    assert await asyncio.to_thread(call_counts, address) == {"Pull": 1}
    with pytest.raises(grpc.RpcError) as caught:
        await asyncio.to_thread(set_faults, address, [Fault(code="NOPE")])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await asyncio.to_thread(set_faults, address, [])
    assert switch.draw("Pull") is None
    await server.stop(0)
