"""The application with its lifespan, served without a network; and a Pub/Sub with the topic and a reader."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

import httpx

from service import server
from service.app import create_app
from service.clients import Clients
from service.config import Settings
from service.db import migrate
from service.local.faults import Fault
from service.local.pubsub import PubsubServer

ARTICLE = b'{"userid": "93234234", "date": "2017-10-17T20:57:17.338320"}'
JSON = {"Content-Type": "application/json"}
NOBODY = "127.0.0.1:1"  # a port on which nothing listens
HANGING = Fault(method="Publish", delay_seconds=60)


def settings_for(tmp_path, pubsub_address=NOBODY, **values):
    """Settings on loopback; the Dataflow that they name is not there unless it is given."""
    values.setdefault("dataflow_emulator_host", NOBODY)
    values.setdefault("publish_deadline_seconds", 5.0)
    return Settings(_env_file=None, data_dir=tmp_path, pubsub_emulator_host=pubsub_address, **values)


class Reader:
    """Pulls what was published to the topic of `settings`."""

    def __init__(self, clients, settings):
        self._clients = clients
        self._settings = settings

    async def call(self, service, method, request, response):
        channel = await self._clients.pubsub_channel()
        stub = channel.unary_unary(
            f"/google.pubsub.v1.{service}/{method}", type(request).SerializeToString, response.FromString
        )
        return await stub(request, timeout=10, wait_for_ready=True)

    async def make_topic(self):
        from google.pubsub_v1 import types

        topic, subscription = types.Topic.pb(), types.Subscription.pb()
        await self.call("Publisher", "CreateTopic", topic(name=self._settings.topic_path), topic)
        asked = subscription(name=self._settings.subscription_path, topic=self._settings.topic_path)
        await self.call("Subscriber", "CreateSubscription", asked, subscription)

    async def pull(self, count):
        """At least `count` messages, or what came before an empty answer."""
        from google.pubsub_v1 import types

        found = []
        while len(found) < count:
            request = types.PullRequest.pb()(
                subscription=self._settings.subscription_path, max_messages=1000, return_immediately=True
            )
            answer = await self.call("Subscriber", "Pull", request, types.PullResponse.pb())
            if not answer.received_messages:
                break
            found += [received.message for received in answer.received_messages]
        return found


@asynccontextmanager
async def pubsub_with_topic(tmp_path, **values):
    """Yields the server, settings that point at it, and a reader of its topic."""
    async with PubsubServer() as server:
        settings = settings_for(tmp_path, server.address, **values)
        clients = Clients(settings)
        reader = Reader(clients, settings)
        await reader.make_topic()
        try:
            yield server, settings, reader
        finally:
            server.faults.set([])
            await clients.close()


@asynccontextmanager
async def running(app):
    """An HTTP client of `app`, between the start and the end of its lifespan."""
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield client


@asynccontextmanager
async def serving(settings):
    async with running(create_app(settings)) as client:
        yield client


@asynccontextmanager
async def listening(settings, app=None):
    """The server with its connections, in this loop; yields its port."""
    migrate(settings)
    listener = server.listen_on("127.0.0.1", 0)
    started = asyncio.Event()
    running = server.Server(app or create_app(settings), started.set)
    # Signals stay with pytest: `serve` would take them.
    task = asyncio.create_task(running._serve(sockets=[listener]))
    await asyncio.wait_for(started.wait(), 30)
    try:
        yield listener.getsockname()[1]
    finally:
        running.should_exit = True
        await asyncio.wait_for(task, 30)


async def until(condition, seconds=5.0):
    """Returns when `condition()` holds; fails when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def assert_problem(response, status, code):
    """Checks that `response` is the problem document of `code`, and returns it."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    problem = response.json()
    assert (problem["status"], problem["code"], problem["type"]) == (status, code, f"/errors#{code}")
    assert problem["title"]
    assert problem["detail"]
    assert problem["instance"] == response.request.url.path
    assert str(problem.get("retry_after", "")) == response.headers.get("retry-after", "")
    return problem
