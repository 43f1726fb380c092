"""The local stack: Pub/Sub, BigQuery and Dataflow as child processes that start and stop as one."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import importlib
import json
import os
from pathlib import Path
from typing import IO, Any

import grpc
import grpc.aio

from service.config import Settings, masked
from service.local.process import ServerError, ServerProcess
from service.local.running import LOCK_FILE, RECORD_FILE, take
from transforms import bigquery_tables
from transforms.bigquery_rows import parse_table

START_SECONDS = 60.0
PROVISION_SECONDS = 30.0
LOCK_SECONDS = 0.5
DATAFLOW_STOP_SECONDS = 15.0  # its workers give their leases back: at most 10 s and the rest
SERVER_STOP_SECONDS = 8.0


class StackError(Exception):
    """The stack cannot be; the message names the cause for a person."""


class Stack:
    """The servers of one data directory.

    `start` returns when all of them answer and topic, subscription, dataset and tables exist;
    `environment` then points any Google client at them. A Pub/Sub emulator that the settings name is
    used instead of an own one. When the process that holds the stack ends, however, its servers end.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        pubsub_port: int = 0,
        dataflow_port: int = 0,
        bigquery_port: int = 0,
        monitoring_port: int = 0,
    ) -> None:
        self.environment: dict[str, str] = {}
        self._settings = settings
        self._data_dir = settings.data_dir.absolute()
        self._lock: IO[str] | None = None
        self._stopping = False
        self._ports = {
            "--pubsub-port": pubsub_port,
            "--dataflow-port": dataflow_port,
            "--bigquery-port": bigquery_port,
            "--monitoring-port": monitoring_port,
        }
        self._pubsub = self._server("pubsub", pubsub_port, "--monitoring-port", str(monitoring_port))
        self._dataflow = self._server("dataflow", dataflow_port)
        self._bigquery = self._server("bigquery", bigquery_port, "--project", settings.project)

    async def start(self) -> None:
        """Starts all. Raises StackError, with nothing left running, where one part cannot be."""
        self._lock = await _lock(self._data_dir)
        try:
            self._record_path.unlink(missing_ok=True)
            await self._start_all()
            self._write_record()
        except BaseException as error:
            await self.stop()
            cause = _first(error) if isinstance(error, BaseExceptionGroup) else error
            if isinstance(cause, StackError | ServerError | OSError):
                raise StackError(str(cause) + self._other_port(str(cause))) from cause
            raise

    async def failed(self) -> str:
        """Returns when a server ends unasked: a sentence about it. Empty where the stack was stopped."""
        waits = [
            asyncio.ensure_future(server.ended())
            for server in (self._pubsub, self._bigquery, self._dataflow)
            if server.pid
        ]
        if not waits:
            return ""
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return "" if self._stopping else done.pop().result()
        finally:
            for wait in waits:
                wait.cancel()

    async def stop(self) -> None:
        """Stops Dataflow, so that its jobs give back what they hold, then the others. Idempotent."""
        self._stopping = True
        if self._lock:
            self._record_path.unlink(missing_ok=True)
        try:
            await self._dataflow.stop(DATAFLOW_STOP_SECONDS)
        finally:
            await asyncio.gather(
                self._bigquery.stop(SERVER_STOP_SECONDS), self._pubsub.stop(SERVER_STOP_SECONDS)
            )
            if self._lock:
                self._lock.close()
                self._lock = None

    def publish(self, **variables: str) -> None:
        """Adds variables to `environment` and to what `read_running` tells other terminals."""
        self.environment |= variables
        self._write_record()

    def _other_port(self, complaint: str) -> str:
        """Which option takes another port, where a server complains of one that is taken; else nothing."""
        for option, port in self._ports.items():
            if port and f":{port} cannot be listened on" in complaint:
                return f"\nChoose another port with {option}; 0 takes a free one."
        return ""

    @property
    def _record_path(self) -> Path:
        return self._data_dir / RECORD_FILE

    def _server(self, name: str, port: int, *arguments: str) -> ServerProcess:
        directory = self._data_dir / name
        return ServerProcess(
            name,
            f"service.local.{name}",
            ["--host", "127.0.0.1", "--port", str(port), "--data-dir", str(directory), *arguments],
            directory=directory,
            log_path=self._data_dir / "logs" / f"{name}.log",
        )

    async def _start_all(self) -> None:
        project = self._settings.project
        self.environment |= {
            "SIGNIN_PROJECT": project,
            "GOOGLE_CLOUD_PROJECT": project,
            "PUBSUB_PROJECT_ID": project,
        }
        async with asyncio.TaskGroup() as together:
            together.create_task(self._start_bigquery())
            together.create_task(self._start_pubsub())
            # Half a second that the provisioning needs later, while the servers start.
            together.create_task(asyncio.to_thread(importlib.import_module, "google.cloud.bigquery"))
        async with asyncio.TaskGroup() as together:
            together.create_task(self._ensure_tables())
            together.create_task(self._start_dataflow())

    async def _start_bigquery(self) -> None:
        self.environment["BIGQUERY_EMULATOR_HOST"] = await self._bigquery.start(START_SECONDS)

    async def _start_dataflow(self) -> None:
        self._dataflow.environment |= self.environment
        self.environment["DATAFLOW_EMULATOR_HOST"] = await self._dataflow.start(START_SECONDS)

    async def _start_pubsub(self) -> None:
        given = self._settings.pubsub_emulator_host
        address = given or await self._pubsub.start(START_SECONDS)
        try:
            await ensure_subscription(address, self._settings.topic_path, self._settings.subscription_path)
        except grpc.aio.AioRpcError as error:
            whose = "PUBSUB_EMULATOR_HOST" if given else "the local Pub/Sub"
            raise StackError(
                f"{whose} at {address} does not make the topic and the subscription: "
                f"{error.code().name} {error.details()}"
            ) from error
        self.environment["PUBSUB_EMULATOR_HOST"] = address
        if monitoring := self._pubsub.besides.get("monitoring"):
            self.environment["SIGNIN_MONITORING_ENDPOINT"] = monitoring

    async def _ensure_tables(self) -> None:
        work = asyncio.ensure_future(asyncio.to_thread(self._ensure_tables_now))
        try:
            async with asyncio.timeout(PROVISION_SECONDS):
                await asyncio.shield(work)
        except TimeoutError as error:
            raise StackError(f"the local BigQuery made no tables in {PROVISION_SECONDS:g} s") from error
        except asyncio.CancelledError:
            # The thread is not left behind: it would try for a minute to reach a server that is gone.
            await asyncio.wait([work], timeout=PROVISION_SECONDS)
            raise

    def _ensure_tables_now(self) -> None:
        from google.api_core.exceptions import GoogleAPIError

        settings = self._settings
        try:
            table = parse_table(settings.table, settings.project)
            dead_letter_table = parse_table(settings.dead_letter_table, settings.project)
        except ValueError as error:
            raise StackError(str(error)) from error
        client = bigquery_tables.client(settings.project, self.environment["BIGQUERY_EMULATOR_HOST"])
        try:
            bigquery_tables.ensure_tables(client, table, dead_letter_table)
        except GoogleAPIError as error:
            raise StackError(f"the local BigQuery does not make the tables: {error}") from error
        finally:
            client.close()

    def _write_record(self) -> None:
        """Tells other terminals where the stack is; the file appears whole or not at all."""
        record: dict[str, Any] = {"pid": os.getpid(), "environment": self.environment}
        record["database"] = masked(self._settings.async_database_url)
        draft = self._record_path.with_suffix(".tmp")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(record, file, indent=2)
        draft.replace(self._record_path)


async def ensure_subscription(address: str, topic: str, subscription: str) -> None:
    """Makes topic and subscription (full names) where they are missing, at a Pub/Sub without TLS.

    Raises AioRpcError, and StackError where the subscription exists but reads another topic.
    """
    types: Any = importlib.import_module("google.pubsub_v1.types")
    async with grpc.aio.insecure_channel(address) as channel:
        call = functools.partial(_call, channel)
        await call("Publisher/CreateTopic", types.Topic.pb(), name=topic)
        made = await call(
            "Subscriber/CreateSubscription", types.Subscription.pb(), name=subscription, topic=topic
        )
        if not made:
            request = types.GetSubscriptionRequest.pb()
            found = await call(
                "Subscriber/GetSubscription", request, types.Subscription.pb(), subscription=subscription
            )
            if found.topic != topic:
                raise StackError(f"{subscription} exists already and reads {found.topic}, not {topic}")


async def _call(channel: Any, method: str, request: Any, response: Any = None, **fields: str) -> Any:
    """The answer of a Pub/Sub method; None where the thing exists already."""
    stub = channel.unary_unary(
        f"/google.pubsub.v1.{method}",
        request_serializer=request.SerializeToString,
        response_deserializer=(response or request).FromString,
    )
    try:
        return await stub(request(**fields), timeout=PROVISION_SECONDS, wait_for_ready=True)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.ALREADY_EXISTS:
            return None
        raise


async def _lock(data_dir: Path) -> IO[str]:
    """The lock of the data directory, held until it is closed. Raises StackError where another holds it."""
    try:
        file = _open_lock(data_dir)
    except OSError as error:
        raise StackError(f"the data directory {data_dir} cannot be used: {error.strerror}") from error
    deadline = asyncio.get_running_loop().time() + LOCK_SECONDS
    while not take(file, fcntl.LOCK_EX):
        # A reader (`read_running`) holds it for an instant: try for a while.
        if asyncio.get_running_loop().time() > deadline:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise StackError(f"the data directory {data_dir} is in use by another stack, process {holder}")
        await asyncio.sleep(0.05)
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _open_lock(data_dir: Path) -> IO[str]:
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return (data_dir / LOCK_FILE).open("a+")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The cause to tell of several: a server's or the stack's own word before any other."""
    for kind in (StackError, ServerError, OSError):
        for error in group.exceptions:
            if isinstance(error, kind):
                return error
    return group
