"""The local Pub/Sub server, seen through Google's own clients: what it delivers, through outages and ends."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
import time
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest
from google.cloud import pubsub_v1
from google.protobuf import timestamp_pb2

from service.local.faults import Fault, call_counts, set_faults
from tests.pubsub_clients import (
    WAIT_SECONDS,
    Clients,
    clients_of_a_test,  # noqa: F401 - a fixture
    pubsub_of_a_module,  # noqa: F401 - a fixture
)
from tests.pubsub_process import PubsubProcess


def test_what_is_published_is_pulled_and_acknowledged(clients: Clients) -> None:
    name = clients.subscribe()
    (number,) = clients.publish(b"hello", kind="web")
    (received,) = clients.pull(name)
    assert (received.message.data, dict(received.message.attributes)) == (b"hello", {"kind": "web"})
    assert received.message.message_id == number
    assert abs(received.message.publish_time.timestamp() - time.time()) < 60
    clients.subscriber.acknowledge(subscription=name, ack_ids=[received.ack_id])
    with pytest.warns(DeprecationWarning, match="return_immediately"):
        response = clients.subscriber.pull(
            subscription=name, max_messages=1, return_immediately=True, timeout=WAIT_SECONDS
        )
    assert not response.received_messages


def test_a_pull_waits_for_a_message_and_answers_before_its_deadline_without_one(clients: Clients) -> None:
    name = clients.subscribe()
    response = clients.subscriber.pull(subscription=name, max_messages=1, timeout=3, retry=None)
    assert not response.received_messages
    with futures.ThreadPoolExecutor(3) as pool:
        pulls = [pool.submit(clients.pull, name, 1) for _ in range(3)]
        clients.publish(b"a", b"b", b"c")
        got = [pull.result(WAIT_SECONDS) for pull in pulls]
    assert sorted(received.message.data for (received,) in got) == [b"a", b"b", b"c"]


def test_a_thousand_messages_come_in_one_pull(clients: Clients) -> None:
    name = clients.subscribe()
    messages = [{"data": b"%d" % number} for number in range(1000)]
    clients.publish_at_once(messages)
    assert [one.message.data for one in clients.pull(name)] == [message["data"] for message in messages]


def test_an_answer_stays_below_what_a_grpc_client_takes(clients: Clients) -> None:
    name = clients.subscribe()
    clients.publish(*[bytes(900_000)] * 6)
    sizes = [len(clients.pull(name)) for _ in range(2)]
    assert sizes == [3, 3]


def test_a_lease_that_ends_brings_the_message_back(clients: Clients) -> None:
    name = clients.subscribe()
    clients.publish(b"again")
    (first,) = clients.pull(name)
    clients.subscriber.modify_ack_deadline(subscription=name, ack_ids=[first.ack_id], ack_deadline_seconds=1)
    (second,) = clients.pull(name)
    assert (second.message.data, second.delivery_attempt) == (b"again", 2)
    assert second.message.message_id == first.message.message_id
    clients.subscriber.modify_ack_deadline(subscription=name, ack_ids=[second.ack_id], ack_deadline_seconds=0)
    (third,) = clients.pull(name)
    assert third.delivery_attempt == 3


def test_streaming_pull_delivers_everything_once_when_it_is_acknowledged(clients: Clients) -> None:
    name = clients.subscribe()
    seen: list[bytes] = []
    done = threading.Event()

    def take(message: Any) -> None:
        seen.append(message.data)
        message.ack()
        if len(seen) == 2000:
            done.set()

    stream = clients.subscriber.subscribe(name, take)
    expected = [b"%d" % number for number in range(2000)]
    clients.publish(*expected)
    assert done.wait(WAIT_SECONDS)
    stream.cancel()
    stream.result(WAIT_SECONDS)
    assert sorted(seen) == sorted(expected)


def test_streaming_pull_keeps_to_the_flow_control_of_the_client(clients: Clients) -> None:
    name = clients.subscribe()
    clients.publish(*[b"%d" % number for number in range(20)])
    held: queue.Queue[Any] = queue.Queue()
    stream = clients.subscriber.subscribe(
        name, held.put, flow_control=pubsub_v1.types.FlowControl(max_messages=5)
    )
    first = [held.get(timeout=WAIT_SECONDS) for _ in range(5)]
    # The five are out on the stream: others are free for a pull at once, so the server kept them back.
    others = clients.pull(name)
    assert len(others) == 15
    clients.subscriber.modify_ack_deadline(
        subscription=name, ack_ids=[one.ack_id for one in others], ack_deadline_seconds=0
    )
    assert held.empty()
    for message in first:
        message.ack()
    second = [held.get(timeout=WAIT_SECONDS) for _ in range(5)]
    assert {one.data for one in first}.isdisjoint(one.data for one in second)
    stream.cancel()
    stream.result(WAIT_SECONDS)


def test_a_nack_on_a_stream_brings_the_message_back(clients: Clients) -> None:
    name = clients.subscribe()
    attempts: queue.Queue[int] = queue.Queue()

    def refuse_twice(message: Any) -> None:
        attempts.put(message.delivery_attempt)
        if message.delivery_attempt < 3:
            message.nack()
        else:
            message.ack()

    stream = clients.subscriber.subscribe(name, refuse_twice)
    clients.publish(b"x")
    assert [attempts.get(timeout=WAIT_SECONDS) for _ in range(3)] == [1, 2, 3]
    stream.cancel()
    stream.result(WAIT_SECONDS)


def test_ordered_messages_reach_the_callback_in_order(clients: Clients) -> None:
    name = clients.subscribe(enable_message_ordering=True)
    seen: dict[str, list[int]] = {"a": [], "b": []}
    done = threading.Event()

    def take(message: Any) -> None:
        seen[message.ordering_key].append(int(message.data))
        message.ack()
        if sum(map(len, seen.values())) == 200:
            done.set()

    stream = clients.subscriber.subscribe(name, take)
    for number in range(100):
        for key in seen:
            clients.publisher.publish(clients.topic, b"%d" % number, ordering_key=key)
    assert done.wait(WAIT_SECONDS)
    stream.cancel()
    stream.result(WAIT_SECONDS)
    assert seen == {"a": list(range(100)), "b": list(range(100))}


def test_a_seek_to_now_empties_the_subscription(clients: Clients) -> None:
    name = clients.subscribe()
    clients.publish(b"old")
    moment = timestamp_pb2.Timestamp()
    moment.FromNanoseconds(time.time_ns() + 1_000_000_000)
    clients.subscriber.seek(request={"subscription": name, "time": moment})
    clients.publish(b"new")
    assert [one.message.data for one in clients.pull(name)] == [b"new"]


def test_a_publish_through_an_outage_arrives_when_it_is_over(server: PubsubProcess, clients: Clients) -> None:
    name = clients.subscribe()
    before = call_counts(server.address).get("Publish", 0)
    set_faults(server.address, [Fault(method="Publish", code="UNAVAILABLE", times=2)])
    clients.publish(b"x")
    assert call_counts(server.address)["Publish"] == before + 3
    set_faults(server.address, [Fault(method="Publish", code="UNAVAILABLE", times=1, after=True)])
    clients.publish(b"y")
    assert [one.message.data for one in clients.pull(name)] == [b"x", b"y", b"y"]


def test_a_stream_survives_an_outage(server: PubsubProcess, clients: Clients) -> None:
    name = clients.subscribe()
    # A stream that fails at once makes the client open two, and the first message may go to the lost one.
    outage = Fault(method="StreamingPull", code="UNAVAILABLE", delay_seconds=0.1, times=2)
    set_faults(server.address, [outage])
    seen = threading.Event()
    stream = clients.subscriber.subscribe(name, lambda message: (message.ack(), seen.set()))
    clients.publish(b"x")
    assert seen.wait(WAIT_SECONDS)
    stream.cancel()
    stream.result(WAIT_SECONDS)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_unacknowledged_messages_survive_the_end_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    with PubsubProcess(tmp_path) as first:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", first.address)
        clients = Clients()
        name = clients.subscribe()
        ids = clients.publish(b"acknowledged", b"leased", b"waiting")
        one, two = clients.pull(name, 2)
        clients.subscriber.acknowledge(subscription=name, ack_ids=[one.ack_id])
        first.process.send_signal(number)
        first.process.wait(10)
        assert first.process.returncode == (0 if number is signal.SIGTERM else -number)
    port = int(first.address.rpartition(":")[2])
    with PubsubProcess(tmp_path, port):
        got = {received.message.data: received for received in clients.pull(name)}
        assert sorted(got) == [b"leased", b"waiting"]
        assert [got[b"leased"].message.message_id, got[b"waiting"].message.message_id] == ids[1:]
        assert got[b"leased"].ack_id != two.ack_id
        (later,) = clients.publish(b"later")
        assert int(later) > int(ids[-1])
        clients.close()


def test_a_port_that_is_taken_is_told(server: PubsubProcess, tmp_path: Path) -> None:
    code, said = PubsubProcess(tmp_path, int(server.address.rpartition(":")[2])).refused()
    assert code == 1
    assert f"{server.address} cannot be listened on" in said
    assert "Traceback" not in said


def test_a_data_directory_in_use_is_told(tmp_path: Path) -> None:
    with PubsubProcess(tmp_path) as server:
        code, said = PubsubProcess(tmp_path).refused()
        assert code == 1
        assert f"in use by another local Pub/Sub server (process {server.process.pid})" in said
        assert "Traceback" not in said


def test_the_server_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys; "
        "p = subprocess.Popen([sys.executable, '-m', 'service.local.lifeline', 'service.local.pubsub', "
        f"'--data-dir', {str(tmp_path)!r}], stdin=subprocess.PIPE); print(p.pid, flush=True); p.wait()"
    )
    parent: Any = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert "ready" in parent.stdout.readline()
    parent.kill()
    # The child holds the other end of this pipe: it reads as ended when the child is gone.
    assert parent.communicate(timeout=10)[0] == ""
    deadline = time.monotonic() + WAIT_SECONDS
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{child}").exists()
