"""The micro-batch engine against the local Pub/Sub server, with graphs of the tests' own."""

from __future__ import annotations

import time

import apache_beam as beam
import pytest
from apache_beam.transforms.userstate import CombiningValueStateSpec
from google.pubsub_v1 import types

from pipeline.local_engine.batch_source import ReadLeasedMessages
from pipeline.local_engine.engine import Limits
from pipeline.local_engine.runs import GraphRuns, UnsupportedGraphError
from pipeline.options import parse
from service.local.faults import call_counts
from tests.engine_place import (
    OPTIONS,
    TABLE,
    build,
    place_of_a_test,  # noqa: F401 - a fixture
    pubsub_of_a_module,  # noqa: F401 - a fixture
    texts,
    until,
)


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
