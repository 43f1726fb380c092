"""The whole local stack as processes: up together, down together, nothing lost and nothing left."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.cloud.dataflow_v1beta3 import types as dataflow_types
from google.pubsub_v1 import types as pubsub_types

from service.config import Settings
from service.local.pubsub import PubsubServer
from service.local.running import end_of_last, read_running, running_database, take
from service.local.stack import Stack, StackError, ensure_subscription
from tests.marked_processes import (
    marked,
    marked_environment,  # noqa: F401
    wait_until_gone,
)
from transforms import bigquery_tables

HOLDER = """
import asyncio, pathlib, sys
from service.config import Settings
from service.local.stack import Stack

async def hold():
    stack = Stack(Settings(_env_file=None, data_dir=pathlib.Path(sys.argv[1])))
    await stack.start()
    print("up", flush=True)
    await asyncio.sleep(100)

asyncio.run(hold())
"""


def settings(data_dir: Path, **values: Any) -> Settings:
    values = {"pubsub_emulator_host": "", "project": "signin-local", "data_dir": data_dir} | values
    return Settings(_env_file=None, **values)


def call(address: str, method: str, request: Any, response: Any) -> Any:
    with grpc.insecure_channel(address) as channel:
        stub = channel.unary_unary(
            f"/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        return stub(request, timeout=10)


def publish(address: str, topic: str, data: bytes) -> None:
    request = pubsub_types.PublishRequest.pb()(topic=topic, messages=[{"data": data}])
    call(address, "google.pubsub.v1.Publisher/Publish", request, pubsub_types.PublishResponse.pb())


def pull(address: str, subscription: str) -> list[bytes]:
    request = pubsub_types.PullRequest.pb()(subscription=subscription, max_messages=10)
    answer = call(address, "google.pubsub.v1.Subscriber/Pull", request, pubsub_types.PullResponse.pb())
    return [received.message.data for received in answer.received_messages]


def insert(environment: dict[str, str], userid: str) -> None:
    client = bigquery_tables.client("signin-local", environment["BIGQUERY_EMULATOR_HOST"])
    row = {"userid": userid, "date": "2026-01-02T03:04:05.000006Z"}
    assert client.insert_rows_json("user_signin.signins", [row], skip_invalid_rows=True, timeout=10) == []
    client.close()


def users(environment: dict[str, str]) -> list[str]:
    client = bigquery_tables.client("signin-local", environment["BIGQUERY_EMULATOR_HOST"])
    rows = client.query_and_wait("SELECT userid FROM user_signin.signins ORDER BY userid", wait_timeout=10)
    found = [row.userid for row in rows]
    client.close()
    return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One running stack; the loop that started it stands still while the tests run on their own."""
    loop = asyncio.new_event_loop()
    stack = Stack(settings(tmp_path_factory.mktemp("stack")))
    try:
        loop.run_until_complete(stack.start())
        yield stack
    finally:
        loop.run_until_complete(stack.stop())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def test_all_three_servers_answer_and_topic_subscription_and_tables_exist(stack: Stack) -> None:
    at, local = stack.environment, settings(Path())
    publish(at["PUBSUB_EMULATOR_HOST"], local.topic_path, b"hello")
    assert pull(at["PUBSUB_EMULATOR_HOST"], local.subscription_path) == [b"hello"]
    insert(at, "u1")
    assert users(at) == ["u1"]
    jobs = call(
        at["DATAFLOW_EMULATOR_HOST"],
        "google.dataflow.v1beta3.JobsV1Beta3/ListJobs",
        dataflow_types.ListJobsRequest.pb()(project_id="signin-local", location="us-central1"),
        dataflow_types.ListJobsResponse.pb(),
    )
    assert not jobs.jobs
    assert at["SIGNIN_PROJECT"] == at["GOOGLE_CLOUD_PROJECT"] == "signin-local"
    waiting = httpx.get(
        f"{at['SIGNIN_MONITORING_ENDPOINT']}/v3/projects/signin-local/timeSeries",
        params={
            "filter": 'metric.type="pubsub.googleapis.com/subscription/num_undelivered_messages"',
            "interval.endTime": datetime.now(UTC).isoformat(),
        },
        timeout=10,
    ).json()
    [series] = waiting["timeSeries"]
    assert series["resource"]["labels"]["subscription_id"] == local.subscription


def test_another_terminal_finds_the_running_stack_and_nobody_else_may_read_where(stack: Stack) -> None:
    data_dir = stack._data_dir
    assert read_running(data_dir) == stack.environment
    assert (data_dir / "stack.json").stat().st_mode & 0o777 == 0o600
    assert json.loads((data_dir / "stack.json").read_text())["pid"] == os.getpid()


async def test_a_second_stack_on_the_same_directory_is_told_who_holds_it(stack: Stack) -> None:
    with pytest.raises(StackError, match=f"in use by another stack, process {os.getpid()}"):
        await Stack(settings(stack._data_dir)).start()
    assert read_running(stack._data_dir) == stack.environment


def test_a_directory_without_a_running_stack_has_none(tmp_path: Path) -> None:
    assert read_running(tmp_path) is None
    (tmp_path / "stack.lock").touch()
    (tmp_path / "stack.json").write_text(json.dumps({"pid": 1, "environment": {"A": "b"}}))
    assert read_running(tmp_path) is None


def test_a_record_that_is_none_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text("{}")
    with (tmp_path / "stack.lock").open("w") as lock:
        assert take(lock, fcntl.LOCK_EX)
        assert read_running(tmp_path) is None
        assert running_database(tmp_path) == ""
        record = {"pid": os.getpid(), "environment": {"SIGNIN_URL": "http://127.0.0.1:1"}}
        (tmp_path / "stack.json").write_text(json.dumps(record))
        assert running_database(tmp_path) == ""  # as an earlier release writes it


def test_what_a_killed_stack_has_left_is_not_taken_for_the_one_that_starts(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as killed:
        killed.wait(timeout=30)
    for pid, found in ((killed.pid, None), (os.getpid(), {"A": "b"})):
        (tmp_path / "stack.json").write_text(json.dumps({"pid": pid, "environment": {"A": "b"}}))
        with (tmp_path / "stack.lock").open("w") as lock:
            assert take(lock, fcntl.LOCK_EX)
            assert read_running(tmp_path) == found


def test_how_the_last_stack_ended_is_known(tmp_path: Path) -> None:
    assert end_of_last(tmp_path) == ""
    with (tmp_path / "stack.lock").open("w") as lock:
        assert take(lock, fcntl.LOCK_EX)
        assert end_of_last(tmp_path) == ""
    assert end_of_last(tmp_path) == "stopped"
    (tmp_path / "stack.json").write_text("{}")
    assert end_of_last(tmp_path) == "killed"


async def test_a_subscription_that_reads_another_topic_is_refused(stack: Stack) -> None:
    address, local = stack.environment["PUBSUB_EMULATOR_HOST"], settings(Path(), topic="another-topic")
    with pytest.raises(StackError, match=r"exists already and reads .*topic-user-signin"):
        await ensure_subscription(address, local.topic_path, local.subscription_path)


async def test_a_second_stack_elsewhere_is_its_own_and_tells_when_a_server_is_killed(
    stack: Stack, tmp_path: Path, mark: str
) -> None:
    second = Stack(settings(tmp_path))
    await second.start()
    try:
        hosts = [name for name in second.environment if name.endswith("_EMULATOR_HOST")]
        assert all(second.environment[name] != stack.environment[name] for name in hosts)
        assert len(hosts) == 3
        insert(second.environment, "only here")
        assert "only here" not in users(stack.environment)

        failure = asyncio.create_task(second.failed())
        os.kill(second._bigquery.pid, signal.SIGKILL)
        sentence = await asyncio.wait_for(failure, 5)
        assert sentence.startswith("bigquery ended unasked with signal SIGKILL")
        assert str(tmp_path / "logs" / "bigquery.log") in sentence
    finally:
        await second.stop()
    assert marked(mark) == set()
    assert read_running(tmp_path) is None
    assert not (tmp_path / "stack.json").exists()


async def test_after_kill_9_nothing_runs_on_and_the_next_stack_knows_everything(
    tmp_path: Path, mark: str
) -> None:
    local = settings(tmp_path)
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, str(tmp_path), stdout=subprocess.PIPE
    )
    assert await asyncio.wait_for(holder.stdout.readline(), 60) == b"up\n"
    environment = read_running(tmp_path)
    publish(environment["PUBSUB_EMULATOR_HOST"], local.topic_path, b"kept")
    insert(environment, "kept")
    assert len(marked(mark)) == 4  # the holder and its three servers
    holder.kill()
    await holder.wait()
    assert read_running(tmp_path) is None
    await asyncio.to_thread(wait_until_gone, mark, 5)

    stack = Stack(local)
    await stack.start()
    try:
        assert pull(stack.environment["PUBSUB_EMULATOR_HOST"], local.subscription_path) == [b"kept"]
        assert users(stack.environment) == ["kept"]
        failure = asyncio.create_task(stack.failed())
        await asyncio.sleep(0)
    finally:
        await stack.stop()
    assert await asyncio.wait_for(failure, 5) == ""
    assert marked(mark) == set()


async def test_a_server_that_cannot_start_takes_all_down_and_a_given_pubsub_is_provisioned(
    tmp_path: Path, mark: str
) -> None:
    async with PubsubServer() as given:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            local = settings(tmp_path, pubsub_emulator_host=given.address)
            stack = Stack(local, dataflow_port=port)
            with pytest.raises(StackError) as caught:
                await stack.start()
        assert str(caught.value).startswith("dataflow ended with exit code 1 before it was ready")
        assert f"127.0.0.1:{port}" in str(caught.value).partition("Its last log lines")[2]
        assert stack.environment["PUBSUB_EMULATOR_HOST"] == given.address
        assert "SIGNIN_MONITORING_ENDPOINT" not in stack.environment
        assert not (tmp_path / "pubsub").exists()
        publishing = asyncio.to_thread(publish, given.address, local.topic_path, b"to the given one")
        await publishing
        pulled = await asyncio.to_thread(pull, given.address, local.subscription_path)
    assert pulled == [b"to the given one"]
    assert marked(mark) == set()
    assert read_running(tmp_path) is None
