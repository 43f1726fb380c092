"""Channels and clients of Google's APIs, or of emulators that speak the same wire protocols.

Everything is made at its first use: importing Google's libraries takes longer than starting the
service may, so they are imported in a thread, and none of them at the top of this module.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from service.config import Settings
from service.errors import ConfigError

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
_DATAFLOW_SERVICES = "google.cloud.dataflow_v1beta3.services"
CREDENTIALS_DEADLINE_SECONDS = 15.0
_CLOSE_DEADLINE_SECONDS = 2.0
_CHANNEL_OPTIONS = (
    # gRPC's own back-off grows to two minutes: after an outage that would be two more minutes of it.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # In spite of its name the limit of one attempt to connect, TLS and the server's first word included.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 1 << 26),
)
# Two threads that import overlapping packages can see each other's half-made modules.
_import_lock = threading.Lock()


class MissingCredentialsError(ConfigError):
    """Google Cloud is asked for and this machine has no credentials for it."""


class PubsubStub(NamedTuple):
    """The calls of the Pub/Sub publisher API on raw protobuf messages, and the types they take.

    Each call is sent with `metadata`, by which Google finds the server of the topic.
    """

    publish: Any
    get_topic: Any
    metadata: tuple[tuple[str, str], ...]
    PublishRequest: Any
    PubsubMessage: Any
    GetTopicRequest: Any


class Clients:
    """One connection for each API, shared by all who ask; for use within one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: dict[str, asyncio.Task[Any]] = {}
        self._channels: list[Any] = []

    async def credentials(self) -> Any:
        """Application Default Credentials. Raises MissingCredentialsError."""
        return await self._once("credentials", _find_credentials)

    async def pubsub_channel(self) -> Any:
        """The `grpc.aio` channel to Pub/Sub."""
        settings = self._settings
        return await self._once(
            "pubsub", lambda: self._connect(settings.pubsub_emulator_host, settings.pubsub_endpoint)
        )

    async def pubsub(self) -> PubsubStub:
        """The publisher API of Pub/Sub."""
        return await self._once("pubsub stub", self._make_pubsub)

    async def dataflow_jobs(self) -> Any:
        """A `JobsV1Beta3AsyncClient`."""
        return await self._dataflow("jobs_v1_beta3", "JobsV1Beta3AsyncClient")

    async def dataflow_flex_templates(self) -> Any:
        """A `FlexTemplatesServiceAsyncClient`."""
        return await self._dataflow("flex_templates_service", "FlexTemplatesServiceAsyncClient")

    async def dataflow_metrics(self) -> Any:
        """A `MetricsV1Beta3AsyncClient`."""
        return await self._dataflow("metrics_v1_beta3", "MetricsV1Beta3AsyncClient")

    async def dataflow_messages(self) -> Any:
        """A `MessagesV1Beta3AsyncClient`."""
        return await self._dataflow("messages_v1_beta3", "MessagesV1Beta3AsyncClient")

    async def close(self) -> None:
        """Closes every channel; calls under way on them fail."""
        for task in self._made.values():
            task.cancel()
        await asyncio.gather(*self._made.values(), return_exceptions=True)
        self._made.clear()
        channels, self._channels = self._channels, []
        closing = asyncio.gather(*(channel.close() for channel in channels), return_exceptions=True)
        try:
            await asyncio.wait_for(closing, _CLOSE_DEADLINE_SECONDS)
        except TimeoutError:
            log.warning("a connection to Google did not close in time")

    async def _once(self, name: str, make: Callable[[], Awaitable[_T]]) -> _T:
        """The result of the first `make` that succeeds; a cancelled caller does not disturb the others."""
        task = self._made.get(name)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._made[name] = asyncio.ensure_future(make())
        result: _T = await asyncio.shield(task)
        return result

    async def _connect(self, emulator_host: str, endpoint: str) -> Any:
        aio = await imported("grpc.aio")
        if emulator_host:
            channel = aio.insecure_channel(emulator_host, options=_CHANNEL_OPTIONS)
        else:
            credentials = _channel_credentials(await self.credentials())
            channel = aio.secure_channel(endpoint, credentials, options=_CHANNEL_OPTIONS)
        self._channels.append(channel)
        return channel

    async def _make_pubsub(self) -> PubsubStub:
        channel = await self.pubsub_channel()
        types = await imported("google.pubsub_v1.types.pubsub")

        def call(method: str, request: Any, response: Any) -> Any:
            return channel.unary_unary(
                f"/google.pubsub.v1.Publisher/{method}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )

        request, get_topic = types.PublishRequest.pb(), types.GetTopicRequest.pb()
        return PubsubStub(
            call("Publish", request, types.PublishResponse.pb()),
            call("GetTopic", get_topic, types.Topic.pb()),
            (("x-goog-request-params", f"topic={quote(self._settings.topic_path, safe='')}"),),
            request,
            types.PubsubMessage.pb(),
            get_topic,
        )

    async def _dataflow(self, service: str, name: str) -> Any:
        return await self._once(name, lambda: self._make_dataflow(service, name))

    async def _make_dataflow(self, service: str, name: str) -> Any:
        settings = self._settings
        client = getattr(await imported(f"{_DATAFLOW_SERVICES}.{service}"), name)
        channel = await self._once(
            "dataflow", lambda: self._connect(settings.dataflow_emulator_host, settings.dataflow_endpoint)
        )
        # The transport takes the channel as it is, so that the four services share one connection.
        return client(transport=client.get_transport_class("grpc_asyncio")(channel=channel))


async def imported(module: str) -> Any:
    """Imports `module` without stopping the event loop for longer than the interpreter must."""

    def load() -> Any:
        with _import_lock:
            return importlib.import_module(module)

    return await asyncio.to_thread(load)


def _channel_credentials(credentials: Any) -> Any:
    import grpc
    from google.auth.transport.grpc import AuthMetadataPlugin
    from google.auth.transport.requests import Request

    plugin = AuthMetadataPlugin(credentials, Request())
    return grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(), grpc.metadata_call_credentials(plugin)
    )


async def _find_credentials() -> Any:
    """Asks google.auth, which may wait long for a metadata server that is not there."""
    found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    # A daemon thread: the executor's threads would hold up the end of the process.
    threading.Thread(
        target=_search, args=(asyncio.get_running_loop(), found), name="credentials", daemon=True
    ).start()
    try:
        return await asyncio.wait_for(found, CREDENTIALS_DEADLINE_SECONDS)
    except TimeoutError as error:
        raise _missing_credentials(f"none found within {CREDENTIALS_DEADLINE_SECONDS:g} s") from error


def _search(loop: asyncio.AbstractEventLoop, found: asyncio.Future[Any]) -> None:
    def tell(credentials: Any, error: Exception | None) -> None:
        if found.done():
            return
        if error:
            found.set_exception(error)
        else:
            found.set_result(credentials)

    credentials: Any = None
    failure: Exception | None = None
    try:
        with _import_lock:
            import google.auth
            import google.auth.exceptions
        credentials, _ = google.auth.default(scopes=_SCOPES)
    except google.auth.exceptions.GoogleAuthError as error:
        failure = _missing_credentials(str(error).split(". ", 1)[0])
    except Exception as error:  # noqa: BLE001 - whatever ends this thread must reach the waiter
        failure = error
    try:
        loop.call_soon_threadsafe(tell, credentials, failure)
    except RuntimeError:
        log.debug("the search for credentials ended after the service")


def _missing_credentials(cause: str) -> MissingCredentialsError:
    return MissingCredentialsError(
        f"There are no usable Google Cloud credentials ({cause}). "
        "Run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file. "
        "`signin up` runs everything on this machine and needs no cloud account."
    )
