"""A topic, an engine that reads it, and the table that the graph of its tests writes to."""

from __future__ import annotations

import io
import itertools
import json
import threading
import time
import warnings
from contextlib import contextmanager

import apache_beam as beam
import grpc
import pytest
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from pipeline.local_engine.batch_source import ReadLeasedMessages
from pipeline.local_engine.engine import Engine, Limits
from pipeline.local_engine.report import Report
from pipeline.local_engine.runs import GraphRuns
from pipeline.local_engine.subscriber import Subscriber
from pipeline.options import parse
from service.local.faults import set_faults
from tests.pubsub_process import PubsubProcess

_numbers = itertools.count(1)
OPTIONS = parse(["--project=signin-local"])
QUICK = Limits(batch_messages=50, retry_seconds=0.01, max_pause_seconds=0.05)


class Table:
    """Where the graph of these tests writes to; one for the process, as a real table is."""

    def __init__(self):
        self.clear()

    def clear(self):
        self.rows = []
        self.failures = 0  # runs that fail, whatever is in them
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()


TABLE = Table()


class WriteFn(beam.DoFn):
    """Commits when the bundle ends; the word poison fails the bundle."""

    def start_bundle(self):
        self.rows = []

    def process(self, message):
        if b"poison" in message.data:
            raise ValueError("this one never works")
        self.rows.append(message.data.decode())

    def finish_bundle(self):
        TABLE.entered.set()
        assert TABLE.open.wait(20)
        if TABLE.failures:
            TABLE.failures -= 1
            raise OSError("the table is away")
        beam.metrics.Metrics.counter("test", "rows").inc(len(self.rows))
        beam.metrics.Metrics.distribution("test", "batch").update(len(self.rows))
        TABLE.rows += self.rows


def build(pipeline):
    _ = pipeline | "Read" >> ReadLeasedMessages("event_time") | "Write" >> beam.ParDo(WriteFn())


class Place:
    """A topic with one subscription of its own, and an engine that reads it."""

    def __init__(self, server):
        self.address = server
        self.channel = grpc.insecure_channel(server)
        self.publisher = PublisherClient(transport=PublisherGrpcTransport(channel=self.channel))
        self.subscribers = SubscriberClient(transport=SubscriberGrpcTransport(channel=self.channel))
        number = next(_numbers)
        self.topic = f"projects/signin-local/topics/topic-{number}"
        self.subscription = f"projects/signin-local/subscriptions/subscription-{number}"
        self.publisher.create_topic(name=self.topic)
        self.subscribers.create_subscription(name=self.subscription, topic=self.topic)
        self.out = io.StringIO()
        self.engine = None
        self.thread = None
        self.failure = None

    def publish(self, *texts, **attributes):
        messages = [{"data": text.encode(), "attributes": attributes} for text in texts]
        self.publisher.publish(topic=self.topic, messages=messages)

    def start(self, runs=None, *, limits=QUICK, id_label=None):
        self.engine = Engine(
            Subscriber(self.channel, self.subscription),
            runs or GraphRuns(build, OPTIONS),
            Report(self.out),
            id_label=id_label,
            limits=limits,
        )
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        try:
            self.engine.run()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.failure = error

    def drain(self):
        if self.thread:
            self.engine.drain()
            self.join()

    def join(self):
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.thread = None
        self.engine._report.metrics()

    def waiting(self):
        """The texts that Pub/Sub delivers at once."""
        texts = []
        while True:
            found = self._pull().received_messages
            if not found:
                return sorted(texts)
            texts += [received.message.data.decode() for received in found]

    def _pull(self):
        request = {"subscription": self.subscription, "max_messages": 1000, "return_immediately": True}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of return_immediately, which is meant here
            return self.subscribers.pull(request, timeout=5)

    def events(self, kind):
        found = [json.loads(line) for line in self.out.getvalue().splitlines()]
        return [event for event in found if event["event"] == kind]

    def counter(self, name):
        reported = self.events("metrics")
        values = {c["name"]: c["value"] for c in reported[-1]["counters"]} if reported else {}
        return values.get(name, 0)


@contextmanager
def empty_place(server):
    """A place whose table is empty; afterwards its engine has ended and the faults of Pub/Sub are gone."""
    TABLE.clear()
    place = Place(server)
    yield place
    TABLE.open.set()
    set_faults(server, [])
    place.drain()
    place.channel.close()


def until(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.005)


def texts(number):
    return [f"text-{index:05}" for index in range(number)]


@pytest.fixture(scope="module", name="server")
def pubsub_of_a_module(tmp_path_factory):
    with PubsubProcess(tmp_path_factory.mktemp("pubsub")) as process:
        yield process.address


@pytest.fixture(name="place")
def place_of_a_test(server):
    with empty_place(server) as place:
        yield place
