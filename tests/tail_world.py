"""A Pub/Sub with sign-ins, and the programs that follow it in processes of their own."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager

from google.pubsub_v1 import types

from tests.running import clean_environment
from tests.serving import pubsub_with_topic

DATE = "2026-01-02T03:04:05.000006Z"
PROJECT = "signin-local"
JOB_SUBSCRIPTION = f"projects/{PROJECT}/subscriptions/user-signin-bigquery"


class Tail:
    """A running `signin tail` and what it printed."""

    def __init__(self, process):
        self.process = process
        self.notes = ""

    async def line(self):
        line = await asyncio.wait_for(self.process.stdout.readline(), 20)
        assert line, self.notes + (await self.process.stderr.read()).decode()
        return line.decode().rstrip("\n")

    async def note(self, words):
        """Reads what it tells people until it says `words`."""
        while words not in self.notes:
            line = await asyncio.wait_for(self.process.stderr.readline(), 20)
            assert line, f"{self.notes!r} says nothing of {words!r}"
            self.notes += line.decode()

    async def end(self, number=None):
        """The exit code and what else it printed."""
        if number:
            self.process.send_signal(number)
        out, err = await asyncio.wait_for(self.process.communicate(), 20)
        self.notes += err.decode()
        return self.process.returncode, out.decode()


class World:
    def __init__(self, server, settings, reader, directory):
        self.server = server
        self.reader = reader
        self.settings = settings
        self.directory = directory
        self.environment = clean_environment() | {
            "PUBSUB_EMULATOR_HOST": server.address,
            "DATAFLOW_EMULATOR_HOST": "127.0.0.1:1",
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "COLUMNS": "200",
        }

    async def publish(self, *messages):
        built = [types.PubsubMessage.pb()(data=data, attributes=attributes) for data, attributes in messages]
        request = types.PublishRequest.pb()(topic=self.settings.topic_path, messages=built)
        await self.reader.call("Publisher", "Publish", request, types.PublishResponse.pb())

    async def subscriptions(self):
        request = types.ListSubscriptionsRequest.pb()(project=f"projects/{PROJECT}")
        answer = await self.reader.call(
            "Subscriber", "ListSubscriptions", request, types.ListSubscriptionsResponse.pb()
        )
        return {one.name for one in answer.subscriptions}

    @asynccontextmanager
    async def run(self, *command, **environment):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            cwd=self.directory,
            env=self.environment | environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield Tail(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    def tail(self, *arguments):
        return self.run("-m", "service", "tail", *arguments)


@asynccontextmanager
async def tail_world(tmp_path):
    """A world with a Pub/Sub of its own that has the topic and the job's subscription."""
    async with pubsub_with_topic(tmp_path, project=PROJECT) as (server, settings, reader):
        yield World(server, settings, reader, tmp_path)


def signin(number, **attributes):
    event = {"userid": f"user-{number}", "date": DATE, "event_id": f"e-{number}"}
    return json.dumps(event | ({"attributes": attributes} if attributes else {})).encode(), {}
