"""The micro-batch engine against the local Pub/Sub server, with graphs of the tests' own."""

from __future__ import annotations

import io
import itertools
import json
import threading
import time
import warnings

import apache_beam as beam
import grpc
import pytest
from apache_beam.transforms.userstate import CombiningValueStateSpec
from google.pubsub_v1 import PublisherClient, SubscriberClient, types
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from pipeline.local_engine.batch_source import ReadLeasedMessages
from pipeline.local_engine.deduplication import WINDOW_SECONDS, CommittedIds
from pipeline.local_engine.engine import Engine, Limits
from pipeline.local_engine.leases import Leases
from pipeline.local_engine.report import Report
from pipeline.local_engine.runs import GraphRuns, UnsupportedGraphError
from pipeline.local_engine.subscriber import MAX_ACK_IDS, Subscriber, SubscriptionError, _parts
from pipeline.options import parse
from service.local.faults import Fault, call_counts, set_faults, wait_held
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


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with PubsubProcess(tmp_path_factory.mktemp("pubsub")) as process:
        yield process.address


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


@pytest.fixture
def place(server):
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


def test_each_message_is_written_once_and_acknowledged(place):
    place.publish(*texts(500))
    place.start()
    until(lambda: len(TABLE.rows) >= 500)
    place.drain()
    assert sorted(TABLE.rows) == texts(500)
    assert place.waiting() == []
    assert place.counter("rows") == 500
    batches = place.counter("batch")
    assert batches["sum"] == 500
    assert batches["count"] >= 1
    assert 1 <= batches["min"] <= 500 / batches["count"] <= batches["max"] <= 500
    assert place.counter("messages_acknowledged") == 500


def test_a_message_after_a_pause_does_not_wait_for_others(place):
    place.start(limits=Limits(linger_seconds=60))
    until(lambda: call_counts(place.address).get("Pull"))
    begun = time.monotonic()
    place.publish("alone")
    until(lambda: TABLE.rows)
    assert time.monotonic() - begun < 20


def test_messages_in_quick_succession_share_a_run(place):
    place.start(limits=Limits(linger_seconds=4))
    place.publish("first")
    until(lambda: TABLE.rows)
    for text in texts(20):
        place.publish(text)
    assert TABLE.rows == ["first"]
    until(lambda: len(TABLE.rows) == 21)


def test_a_batch_goes_on_while_another_is_under_way(place):
    TABLE.open.clear()
    place.start(limits=Limits(linger_seconds=0.0))
    place.publish("first")
    assert TABLE.entered.wait(15)
    TABLE.entered.clear()
    place.publish("second")
    assert TABLE.entered.wait(15)
    assert TABLE.rows == []
    TABLE.open.set()
    place.drain()
    assert sorted(TABLE.rows) == ["first", "second"]
    assert place.waiting() == []


def test_a_poison_message_holds_up_nobody_and_comes_back_at_the_end(place):
    place.publish(*texts(100), "poison", *[f"{text}-late" for text in texts(100)])
    place.start()
    until(lambda: len(TABLE.rows) >= 200)
    until(lambda: any("fails alone" in event["message"] for event in place.events("error")))
    place.drain()
    assert len(set(TABLE.rows)) == len(TABLE.rows) == 200
    assert place.waiting() == ["poison"]


def test_a_poison_message_that_comes_again_runs_alone(place):
    place.start(limits=Limits(batch_messages=50, retry_seconds=0.01, park_seconds=1, linger_seconds=1))
    place.publish("poison")
    until(lambda: len([e for e in place.events("error") if "fails alone" in e["message"]]) >= 2)
    assert all(
        "of 1 messages" in e["message"] or "fails alone" in e["message"] for e in place.events("error")
    )


def test_many_poison_messages_that_come_again_hold_up_nobody(place):
    place.publish(*[text for pair in zip(texts(30), ["poison"] * 30, strict=True) for text in pair])
    place.start(limits=Limits(retry_seconds=0.01, park_seconds=1))
    until(lambda: len([e for e in place.events("error") if "fails alone" in e["message"]]) >= 90)
    assert sorted(TABLE.rows) == texts(30)


def test_neighbouring_poison_messages_hold_up_nobody(place):
    place.publish(*["poison"] * 60, *texts(60))
    place.start(limits=Limits(retry_seconds=0.01))
    until(lambda: len([e for e in place.events("error") if "fails alone" in e["message"]]) >= 60)
    assert sorted(TABLE.rows) == texts(60)


def test_a_batch_that_fails_for_a_while_is_neither_lost_nor_split(place):
    TABLE.failures = 1
    place.publish(*texts(30))
    place.start()
    until(lambda: TABLE.rows)
    place.drain()
    assert sorted(TABLE.rows) == texts(30)
    assert place.waiting() == []
    assert place.counter("runs_failed") == 1


def test_an_outage_of_the_table_loses_nothing(place):
    TABLE.failures = 40
    place.publish(*texts(50))
    place.start(limits=Limits(batch_messages=50, retry_seconds=0.01, max_pause_seconds=0.05, park_seconds=1))
    until(lambda: len(TABLE.rows) >= 50)
    place.drain()
    assert sorted(TABLE.rows) == texts(50)
    assert place.waiting() == []


def test_a_drain_finishes_the_batches_under_way_and_gives_the_rest_back(place):
    TABLE.open.clear()
    for part in "abc":  # a delivery for each lane, and one more
        place.publish(*[f"{part}-{text}" for text in texts(900)])
    place.start()
    assert TABLE.entered.wait(15)
    place.engine.drain()
    TABLE.open.set()
    place.drain()
    written, rest = set(TABLE.rows), set(place.waiting())
    assert written
    assert rest
    assert not written & rest
    assert len(written | rest) == 2700


def test_a_drain_does_not_wait_for_a_batch_that_fails(place):
    TABLE.failures = 10**6
    place.publish(*texts(50))
    place.start()
    until(lambda: place.events("error"))
    place.drain()
    assert place.waiting() == texts(50)


def test_a_drain_does_not_try_a_batch_again_that_failed(place):
    TABLE.failures = 10
    TABLE.open.clear()
    place.publish(*texts(5))
    place.start()
    assert TABLE.entered.wait(15)
    place.engine.drain()
    TABLE.open.set()
    place.drain()
    assert place.counter("runs_failed") == 1
    assert place.waiting() == texts(5)


def test_an_idle_engine_drains_at_once(place):
    place.start()
    until(lambda: call_counts(place.address).get("Pull"))
    begun = time.monotonic()
    place.drain()
    assert time.monotonic() - begun < 10


def test_a_cancel_gives_back_what_is_leased(place):
    TABLE.open.clear()
    place.publish(*texts(10))
    place.start()
    assert TABLE.entered.wait(15)
    place.engine.give_back()
    assert place.waiting() == texts(10)


def test_a_message_published_twice_counts_once(place):
    place.publish("one", "two", event_id="same")
    place.publish("three", event_id="other")
    place.start(id_label="event_id")
    until(lambda: len(TABLE.rows) == 2)
    place.publish("four", event_id="same")
    place.publish("five")
    until(lambda: "five" in TABLE.rows)
    place.drain()
    assert TABLE.rows == ["one", "three", "five"]
    assert place.waiting() == []
    assert place.counter("duplicates_dropped") == 2


def test_a_copy_of_a_message_whose_batch_failed_is_not_dropped(place):
    TABLE.failures = 1
    place.publish("one", event_id="same")
    place.start(id_label="event_id")
    until(lambda: TABLE.rows)
    assert TABLE.rows == ["one"]


def test_a_copy_that_waits_for_another_batch_is_written_when_that_fails_and_nothing_else_is_held_back(place):
    place.start(id_label="event_id")
    TABLE.open.clear()
    TABLE.failures = 1
    place.publish("first", event_id="one")
    assert TABLE.entered.wait(10)
    place.publish("copy", event_id="one")
    place.publish("other", event_id="two")
    TABLE.open.set()
    until(lambda: len(TABLE.rows) == 2)
    place.drain()
    assert len(TABLE.rows) == 2
    assert "other" in TABLE.rows
    left = place.waiting()  # the other one of the two, where the drain came before it was tried again
    assert place.counter("duplicates_dropped") + len(left) == 1
    assert not set(left) & set(TABLE.rows)


def test_ids_are_forgotten_after_the_time_that_dataflow_remembers_them():
    now = [0.0]
    ids = CommittedIds("event_id", clock=lambda: now[0])
    message = type("Message", (), {"attributes": {"event_id": "a"}})()
    fresh, new = ids.claim([message, message])
    assert fresh == [message]
    ids.settle(new, committed=True)
    assert ids.claim([message]) == ([], [])
    now[0] = WINDOW_SECONDS + 1
    assert ids.claim([message]) == ([message], ["a"])


@pytest.mark.parametrize(("committed", "copies"), [(True, 0), (False, 1)])
def test_a_copy_in_another_batch_waits_for_the_end_of_the_first(committed, copies):
    ids = CommittedIds("event_id")
    message, other = (type("Message", (), {"attributes": {"event_id": name}})() for name in "ab")
    ids.claim([message])
    assert ids.claim([other])[0] == [other]
    claimed = []
    second = threading.Thread(target=lambda: claimed.append(ids.claim([message])[0]), daemon=True)
    second.start()
    second.join(0.05)
    assert second.is_alive()
    ids.settle(["a"], committed=committed)
    second.join(10)
    assert claimed == [[message] * copies]


def test_pubsub_may_be_away_for_a_while(place):
    set_faults(place.address, [Fault(method="Pull", code="UNAVAILABLE", times=3)])
    place.publish("late")
    place.start()
    until(lambda: TABLE.rows)
    assert any("UNAVAILABLE" in event["message"] for event in place.events("error"))


def test_an_acknowledgement_that_fails_is_tried_again(place):
    set_faults(place.address, [Fault(method="Acknowledge", code="UNAVAILABLE", times=2)])
    place.publish("one")
    place.start()
    until(lambda: TABLE.rows)
    place.drain()
    assert place.counter("messages_acknowledged") == 1
    assert place.waiting() == []


def test_a_lost_answer_to_an_acknowledgement_does_no_harm(place):
    set_faults(place.address, [Fault(method="Acknowledge", code="UNAVAILABLE", times=1, after=True)])
    place.publish("one")
    place.start()
    until(lambda: TABLE.rows)
    place.drain()
    assert TABLE.rows == ["one"]
    assert place.waiting() == []


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "NOT_FOUND"])
def test_a_refusal_of_pubsub_ends_the_engine(place, code):
    place.start()
    place.publish("one")
    until(lambda: TABLE.rows)
    set_faults(place.address, [Fault(method="Pull", code=code)])
    place.publish("two")
    until(lambda: not place.thread.is_alive())
    assert isinstance(place.failure, SubscriptionError)
    assert code in str(place.failure)


def test_a_subscription_that_does_not_exist_is_told_before_anything_runs(place):
    with pytest.raises(SubscriptionError, match="NOT_FOUND"):
        Subscriber(place.channel, f"{place.subscription}-not").ack_deadline_seconds()


def test_leases_are_extended_until_they_are_given_back(place):
    place.publish("one")
    subscriber = Subscriber(place.channel, place.subscription)
    begun = time.monotonic()
    (received,) = subscriber.begin_pull(10, 5).result().received_messages
    before = call_counts(place.address).get("ModifyAckDeadline", 0)
    leases = Leases(subscriber, deadline_seconds=3)
    leases.start()
    leases.hold([received.ack_id], begun)
    until(lambda: call_counts(place.address).get("ModifyAckDeadline", 0) >= before + 4)
    assert place.waiting() == []
    leases.close()
    assert place.waiting() == ["one"]


def test_an_extension_that_is_late_does_not_bring_back_a_message_that_was_put_away_meanwhile(place):
    place.publish("one")
    subscriber = Subscriber(place.channel, place.subscription)
    begun = time.monotonic()
    (received,) = subscriber.begin_pull(10, 5).result().received_messages
    set_faults(place.address, [Fault(method="ModifyAckDeadline", hold=True, times=1)])
    leases = Leases(subscriber, deadline_seconds=1)
    leases.hold([received.ack_id], begun)
    leases.start()
    wait_held(place.address, "ModifyAckDeadline")
    parking = threading.Thread(target=leases.park, args=(received.ack_id, 60))
    parking.start()
    parking.join(0.5)  # which it does only where it does not wait for the extension
    set_faults(place.address, [])
    parking.join(5)
    assert not parking.is_alive()
    assert not subscriber.begin_pull(10, 2.0).result().received_messages
    leases.close()
    assert place.waiting() == ["one"]


def test_a_call_that_fails_keeps_no_other_leases(place):
    for number in range(3):
        place.publish(*[f"{number}-{text}" for text in texts(900)])
    subscriber = Subscriber(place.channel, place.subscription)
    leases = Leases(subscriber, deadline_seconds=10)
    held = 0
    while held < 2700:
        found = subscriber.begin_pull(1000, 5).result().received_messages
        leases.hold([received.ack_id for received in found], time.monotonic())
        held += len(found)
    set_faults(place.address, [Fault(method="ModifyAckDeadline", code="UNAVAILABLE", times=1)])
    leases.close()
    assert len(place.waiting()) == 2700 - MAX_ACK_IDS


def test_a_call_carries_no_more_ack_ids_than_pubsub_takes():
    parts = list(_parts(["x" * 180] * 6_000))
    assert sum(map(len, parts)) == 6_000
    assert max(map(len, parts)) <= MAX_ACK_IDS
    assert max(sum(map(len, part)) for part in parts) < 512 * 1024


@pytest.mark.parametrize(
    "event_time", ["", "yesterday", "99999999999999999999", "2017-10-17T20:57:17.123456789Z", "1508273837000"]
)
def test_no_event_time_stops_a_message(place, event_time):
    place.publish("one", event_time=event_time)
    place.start()
    until(lambda: TABLE.rows)


def test_without_the_private_names_of_beam_each_batch_builds_a_pipeline(place):
    runs = GraphRuns(build, OPTIONS)
    assert runs.translates_once
    runs.translates_once = False
    place.publish(*texts(10))
    place.start(runs)
    until(lambda: len(TABLE.rows) == 10)
    place.drain()
    assert place.counter("rows") == 10


def test_a_run_whose_read_step_is_on_another_thread_fails_instead_of_losing_its_messages():
    arguments = ["--project=signin-local", "--direct_running_mode=multi_threading", "--direct_num_workers=2"]
    runs = GraphRuns(build, parse(arguments))
    runs.translates_once = False
    with pytest.raises(Exception, match="on another thread than the run's"):
        runs.run([types.PubsubMessage.pb()(data=b"1")])


class StatefulFn(beam.DoFn):
    COUNT = CombiningValueStateSpec("count", sum)

    def process(self, element, count=beam.DoFn.StateParam(COUNT)):  # noqa: B008 - how Beam is told
        count.add(1)


def with_windows(pipeline):
    _ = pipeline | ReadLeasedMessages() | "Window" >> beam.WindowInto(beam.window.FixedWindows(60))


def with_grouping(pipeline):
    _ = pipeline | beam.Create([("a", 1)]) | "Group" >> beam.GroupByKey()


def with_combine(pipeline):
    _ = pipeline | beam.Create([("a", 1)]) | "Sum" >> beam.CombinePerKey(sum)


def with_state(pipeline):
    _ = pipeline | beam.Create([("a", 1)]) | "Count" >> beam.ParDo(StatefulFn())


@pytest.mark.parametrize("graph", [with_windows, with_grouping, with_combine, with_state])
def test_a_graph_that_reaches_beyond_a_batch_is_refused(graph):
    with pytest.raises(UnsupportedGraphError, match="micro-batch"):
        GraphRuns(graph, OPTIONS)
