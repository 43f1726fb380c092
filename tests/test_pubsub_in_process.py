"""The local Pub/Sub server inside the test's own event loop: waiting, shutting down, failing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import empty_pb2
from google.pubsub_v1 import types

from service.local.faults import Fault
from service.local.journal import JournalError
from service.local.pubsub import PubsubServer

PROJECT = "projects/signin-local"
TOPIC = f"{PROJECT}/topics/signins"
NAME = f"{PROJECT}/subscriptions/first"
WAIT_SECONDS = 20


class Stub:
    """Raw calls to a server at `address`."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address)

    async def call(self, service: str, method: str, request: Any, response: Any, timeout: float = 10) -> Any:
        call = self.channel.unary_unary(
            f"/google.pubsub.v1.{service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        return await call(request, timeout=timeout)

    async def prepare(self) -> None:
        await self.call("Publisher", "CreateTopic", types.Topic.pb()(name=TOPIC), types.Topic.pb())
        pb = types.Subscription.pb()
        await self.call("Subscriber", "CreateSubscription", pb(name=NAME, topic=TOPIC), pb)

    async def publish(self, *data: bytes, timeout: float = 10) -> Any:
        request = types.PublishRequest.pb()(topic=TOPIC, messages=[{"data": one} for one in data])
        return await self.call("Publisher", "Publish", request, types.PublishResponse.pb(), timeout)

    async def pull(self, limit: int = 1000, timeout: float = 10) -> list[Any]:
        request = types.PullRequest.pb()(subscription=NAME, max_messages=limit)
        response = await self.call("Subscriber", "Pull", request, types.PullResponse.pb(), timeout)
        return list(response.received_messages)

    async def acknowledge(self, received: list[Any]) -> None:
        ids = [one.ack_id for one in received]
        request = types.AcknowledgeRequest.pb()(subscription=NAME, ack_ids=ids)
        await self.call("Subscriber", "Acknowledge", request, empty_pb2.Empty)

    def stream(self) -> Any:
        return self.channel.stream_stream(
            "/google.pubsub.v1.Subscriber/StreamingPull",
            request_serializer=types.StreamingPullRequest.pb().SerializeToString,
            response_deserializer=types.StreamingPullResponse.pb().FromString,
        )(timeout=WAIT_SECONDS)


FIRST_REQUEST = types.StreamingPullRequest.pb()(subscription=NAME, stream_ack_deadline_seconds=10)


@pytest.fixture
async def server() -> AsyncIterator[PubsubServer]:
    async with PubsubServer() as server:
        yield server


@pytest.fixture
async def stub(server: PubsubServer) -> AsyncIterator[Stub]:
    stub = Stub(server.address)
    await stub.prepare()
    yield stub
    await stub.channel.close()


async def status_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    code: grpc.StatusCode = caught.value.code()
    return code


class Pullers:
    """Tasks that pull one message at a time and acknowledge it; `missing` was not seen by any."""

    def __init__(self, stub: Stub, expected: set[bytes]) -> None:
        self._stub = stub
        self.missing = set(expected)

    async def take(self) -> None:
        """Waits for each message."""
        while True:
            await self._handle(await self._stub.pull(limit=1))

    async def take_impatiently(self) -> None:
        """Cancels each pull that is not answered within 10 ms."""
        while True:
            pull = asyncio.create_task(self._stub.pull(limit=1))
            await asyncio.wait([pull], timeout=0.01)
            if pull.done():
                await self._handle(pull.result())
            else:
                pull.cancel()

    async def _handle(self, received: list[Any]) -> None:
        if received:
            await self._stub.acknowledge(received)
            self.missing.discard(received[0].message.data)


async def test_no_wake_up_is_lost_among_many_pullers_some_of_which_go_away(
    server: PubsubServer, stub: Stub
) -> None:
    expected = {b"%d" % number for number in range(300)}
    pullers = Pullers(stub, expected)
    tasks = [asyncio.create_task(pullers.take()) for _ in range(8)]
    tasks += [asyncio.create_task(pullers.take_impatiently()) for _ in range(2)]
    for data in expected:
        await stub.publish(data)
    backlog = server.broker.subscription(NAME).backlog
    async with asyncio.timeout(5):
        # What a cancelled pull took stays leased until its deadline of 10 s; nothing else may wait.
        while backlog.has_ready or len(pullers.missing) > len(list(backlog.outstanding())):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert len(pullers.missing) < 250
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_shutdown_ends_waiting_pulls_and_streams_with_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.local.grpc_server.STOP_GRACE_SECONDS", 30.0)
    async with PubsubServer() as server:
        stub = Stub(server.address)
        await stub.prepare()
        stream = stub.stream()
        await stream.write(FIRST_REQUEST)
        await stub.publish(b"x")
        await stream.read()
        ends = [asyncio.create_task(status_of(drained(stream)))]
        ends += [asyncio.create_task(status_of(stub.pull(timeout=WAIT_SECONDS))) for _ in range(2)]
        await until_called(server, "Pull", 2)
        started = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - started < 20, "nobody had to be cut off"
    assert await asyncio.gather(*ends) == [grpc.StatusCode.UNAVAILABLE] * 3
    await stub.channel.close()


async def until_called(server: PubsubServer, method: str, times: int) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while server.faults.calls[method] < times:  # noqa: ASYNC110 - a count has no event
            await asyncio.sleep(0.01)


async def test_only_the_newest_stream_of_a_client_gets_messages(server: PubsubServer, stub: Stub) -> None:
    first_request = types.StreamingPullRequest.pb()(
        subscription=NAME, stream_ack_deadline_seconds=10, client_id="one"
    )
    streams = []
    for number in (1, 2):
        streams.append(stub.stream())
        await streams[-1].write(first_request)
        await until_called(server, "StreamingPull", number)
    for number in range(20):
        await stub.publish(b"%d" % number)
        response = await streams[1].read()
        assert [one.message.data for one in response.received_messages] == [b"%d" % number]
    streams[1].cancel()
    await stub.publish(b"after")
    response = await streams[0].read()
    assert [one.message.data for one in response.received_messages] == [b"after"]
    streams[0].cancel()


async def drained(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


async def test_leases_of_a_stream_that_is_gone_end_with_their_deadline(
    server: PubsubServer, stub: Stub
) -> None:
    stream = stub.stream()
    await stream.write(FIRST_REQUEST)
    await stub.publish(b"x")
    response = await stream.read()
    stream.cancel()
    request = types.ModifyAckDeadlineRequest.pb()(
        subscription=NAME, ack_ids=[response.received_messages[0].ack_id], ack_deadline_seconds=1
    )
    await stub.call("Subscriber", "ModifyAckDeadline", request, empty_pb2.Empty)
    (received,) = await stub.pull()
    assert received.delivery_attempt == 2


async def test_a_full_backlog_refuses_publishing_until_it_is_acknowledged() -> None:
    async with PubsubServer(backlog_bytes=5000) as server:
        stub = Stub(server.address)
        await stub.prepare()
        await stub.publish(bytes(4000))
        assert await status_of(stub.publish(bytes(4000))) is grpc.StatusCode.RESOURCE_EXHAUSTED
        await stub.acknowledge(await stub.pull())
        await stub.publish(bytes(4000))
        await stub.channel.close()


async def test_a_python_error_is_told_as_internal_and_logged(
    server: PubsubServer, stub: Stub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(server.broker, "lease", broken)
    monkeypatch.setattr(server.broker, "publish", broken)
    await_stream = stub.stream()
    await await_stream.write(FIRST_REQUEST)
    for call, method in (
        (stub.publish(b"x"), "Publish"),
        (stub.pull(), "Pull"),
        (drained(await_stream), "StreamingPull"),
    ):
        assert await status_of(call) is grpc.StatusCode.INTERNAL
        assert f"{method} failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_a_fault_without_a_code_and_with_a_long_delay_is_a_hang(
    server: PubsubServer, stub: Stub
) -> None:
    server.faults.set([Fault(method="Publish", delay_seconds=3600)])
    assert await status_of(stub.publish(b"x", timeout=0.2)) is grpc.StatusCode.DEADLINE_EXCEEDED
    server.faults.set([])
    await stub.publish(b"y")
    assert [one.message.data for one in await stub.pull()] == [b"y"]


async def test_an_entered_server_holds_its_port_and_its_directory(tmp_path: Path) -> None:
    async with PubsubServer(tmp_path) as server:
        with pytest.raises(JournalError, match="in use"):
            await PubsubServer(tmp_path).__aenter__()
        port = int(server.address.rpartition(":")[2])
        with pytest.raises(OSError, match="cannot be listened on"):
            await PubsubServer(tmp_path / "other", port=port).__aenter__()
        async with PubsubServer(tmp_path / "other"):
            pass
