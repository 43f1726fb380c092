"""The fault switch of the local servers, reached as a user reaches it."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from service.local.faults import Fault, FaultSwitch, call_counts, set_faults
from service.local.grpc_server import start_server


@pytest.mark.parametrize(
    ("fault", "method", "hits"),
    [
        (Fault(code="UNAVAILABLE"), "Publish", 5),
        (Fault(method="Publish", code="UNAVAILABLE"), "Publish", 5),
        (Fault(method="Pull", code="UNAVAILABLE"), "Publish", 0),
        (Fault(code="UNAVAILABLE", times=2), "Publish", 2),
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
    [Fault(code="NOPE"), Fault(code="OK"), Fault(share=1.1), Fault(delay_seconds=-1), Fault(times=-1)],
)
def test_a_fault_that_makes_no_sense_changes_nothing(fault: Fault) -> None:
    switch = FaultSwitch()
    good = Fault(code="UNAVAILABLE")
    switch.set([good])
    with pytest.raises(ValueError, match=r"status|share"):
        switch.set([fault])
    assert switch.draw("Pull") is good


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
