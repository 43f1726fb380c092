"""The pipeline's runs on this machine, as a program between the local Pub/Sub and BigQuery."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from tests.bigquery_servers import PROJECT, local_bigquery
from tests.pubsub_process import PubsubProcess
from tests.running import environment
from tests.signin_samples import load_samples

ROOT = Path(__file__).parents[1]
TOPIC = f"projects/{PROJECT}/topics/topic-user-signin"


class Local:
    """The local Pub/Sub and BigQuery, and jobs between them."""

    def __init__(self, pubsub, bigquery, directory):
        self.bigquery = bigquery
        self.environment = environment(PUBSUB_EMULATOR_HOST=pubsub, BIGQUERY_EMULATOR_HOST=bigquery)
        self.directory = directory
        channel = grpc.insecure_channel(pubsub)
        self.publisher = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        self.subscribers = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        self.publisher.create_topic(name=TOPIC)

    def subscribe(self, name):
        path = f"projects/{PROJECT}/subscriptions/{name}"
        self.subscribers.create_subscription(name=path, topic=TOPIC)
        return path

    def publish(self, *payloads):
        for start in range(0, len(payloads), 1000):
            messages = [{"data": payload} for payload in payloads[start : start + 1000]]
            self.publisher.publish(topic=TOPIC, messages=messages)

    def select(self, sql):
        """The rows of a query, each a list of texts."""
        request = urllib.request.Request(
            f"{self.bigquery}/bigquery/v2/projects/{PROJECT}/queries",
            json.dumps({"query": sql, "useLegacySql": False}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            rows = json.load(answer).get("rows", [])
        return [[cell["v"] for cell in row["f"]] for row in rows]

    @contextlib.contextmanager
    def job(self, *arguments):
        with (self.directory / "job.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "service.local.lifeline", "pipeline.user_signin", *arguments],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            try:
                yield Job(process, self.directory / "job.log")
            finally:
                process.kill()
                process.communicate(timeout=10)


class Job:
    """A running job; `events` is what it said so far."""

    def __init__(self, process, log):
        self.process = process
        self.log = log
        self.events = []

    def read(self):
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        self.events.append(json.loads(line))
        return self.events[-1]

    def until_state(self, state):
        while self.read() != {"event": "state", "state": state}:
            pass

    def until_counted(self, name, value):
        while self.counters().get(name, 0) < value:
            self.read()

    def counters(self):
        metrics = [event for event in self.events if event["event"] == "metrics"]
        return {counter["name"]: counter["value"] for counter in metrics[-1]["counters"]} if metrics else {}

    def stop(self, number):
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    directory = tmp_path_factory.mktemp("local")
    bigquery_directory = directory / "bigquery"
    bigquery_directory.mkdir()
    with PubsubProcess(directory / "pubsub") as pubsub, local_bigquery(bigquery_directory) as bigquery:
        yield Local(pubsub.address, bigquery, directory)


def signins(number, prefix):
    return [
        json.dumps({"userid": f"{prefix}-{index}", "date": "2017-10-17T20:57:17.338320"}).encode()
        for index in range(number)
    ]


def test_every_message_becomes_one_row_or_one_dead_letter(local):
    subscription = local.subscribe("whole")
    article = b'{"userid": "93234234", "date": "2017-10-17T20:57:17.338320"}'
    local.publish(article, b"{broken", b'{"userid": 1, "date": "2017-10-17T20:57:17Z"}', b"\xff\x00")
    local.publish(*signins(50, "whole"))
    with local.job(f"--input_subscription={subscription}", "--output_table=a.b") as job:
        job.until_state("RUNNING")
        job.until_counted("messages_acknowledged", 54)
        assert job.stop(signal.SIGTERM) == 0
        job.until_state("DRAINED")
        counters = job.counters()
    assert counters["rows_written"] == 51
    assert counters["dead_letters_written"] == 3
    assert local.select("SELECT COUNT(*), COUNT(DISTINCT userid) FROM a.b") == [["51", "51"]]
    assert local.select("SELECT userid FROM a.b WHERE userid = '93234234'") == [["93234234"]]
    letters = local.select("SELECT reason, job_id FROM user_signin.dead_letters ORDER BY reason")
    assert [job_id for _, job_id in letters] == ["signin-user-tobigquery"] * 3
    assert [reason for reason, _ in letters] == ["invalid_json", "invalid_utf8", "userid_invalid"]


def test_each_sample_becomes_on_its_whole_way_what_the_file_says(local):
    samples = load_samples()
    subscription = local.subscribe("samples")
    for start in range(0, len(samples), 50):
        part = [{"data": s.body, "attributes": {"sample": s.name}} for s in samples[start : start + 50]]
        local.publisher.publish(topic=TOPIC, messages=part)
    tables = ("--output_table=samples.signins", "--dead_letter_table=samples.letters")
    with local.job(f"--input_subscription={subscription}", *tables) as job:
        job.until_state("RUNNING")
        job.until_counted("messages_acknowledged", len(samples))
        assert job.stop(signal.SIGTERM) == 0
    events = [sample.outcome for sample in samples if not sample.error]
    rows = local.select("SELECT userid, event_id, UNIX_MICROS(date), attributes FROM samples.signins")
    assert Counter((*row[:2], int(row[2]), frozenset(_pairs(row[3]))) for row in rows) == Counter(
        (event.userid, event.event_id, _micros(event.date), frozenset(event.attributes.items()))
        for event in events
    )
    letters = local.select("SELECT reason, payload, attributes FROM samples.letters")
    found = [(_sample_name(attributes), reason, payload) for reason, payload, attributes in letters]
    expected = [
        (sample.name, sample.error, base64.b64encode(sample.body).decode())
        for sample in samples
        if sample.error
    ]
    assert sorted(found) == sorted(expected)


def _sample_name(attributes):
    """The attribute `sample` of records as a query answers them."""
    return dict(_pairs(attributes))["sample"]


def _pairs(attributes):
    """The keys and values of records as a query answers them."""
    return [tuple(cell["v"] for cell in record["v"]["f"]) for record in attributes]


def _micros(text):
    """Microseconds since 1970 of the UTC text that an event has."""
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


@pytest.mark.soak  # ten seconds of it are the deadline after which Pub/Sub gives messages again
def test_a_killed_job_loses_nothing(local):
    subscription = local.subscribe("killed")
    table = "--output_table=killed.signins"
    local.publish(*signins(20_000, "killed"))
    with local.job(f"--input_subscription={subscription}", table) as job:
        job.until_counted("messages_acknowledged", 1)
        job.stop(signal.SIGKILL)
    with local.job(f"--input_subscription={subscription}", table) as job:
        job.until_state("RUNNING")
        deadline = time.monotonic() + 30
        while local.select("SELECT COUNT(DISTINCT userid) FROM killed.signins") != [["20000"]]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert job.stop(signal.SIGTERM) == 0


def test_a_cancelled_job_leaves_with_130(local):
    subscription = local.subscribe("cancelled")
    with local.job(f"--input_subscription={subscription}") as job:
        job.until_state("RUNNING")
        assert job.stop(signal.SIGINT) == 130


def test_a_drain_before_the_job_runs_is_kept(local):
    subscription = local.subscribe("early")
    with local.job(f"--input_subscription={subscription}") as job:
        deadline = time.monotonic() + 20
        handled = 1 << (signal.SIGTERM - 1)
        while not _caught_signals(job.process.pid) & handled:
            assert time.monotonic() < deadline
        assert job.stop(signal.SIGTERM) == 0
        job.until_state("DRAINED")


def _caught_signals(pid):
    """The mask of the signals for which the process has handlers, on Linux."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return int(line.split()[1], 16)
    return 0


def test_a_topic_is_read_through_a_subscription_that_goes_with_the_job(local):
    def subscriptions():
        return {s for s in local.publisher.list_topic_subscriptions(topic=TOPIC) if "signin-user-to" in s}

    with local.job(f"--project={PROJECT}", "--output_table=topic.signins") as job:
        job.until_state("RUNNING")
        assert len(subscriptions()) == 1
        local.publish(*signins(3, "topic"))
        job.until_counted("messages_acknowledged", 3)
        assert job.stop(signal.SIGTERM) == 0
    assert subscriptions() == set()


def test_a_job_on_a_subscription_that_does_not_exist_fails_with_a_sentence(local):
    with local.job(f"--input_subscription=projects/{PROJECT}/subscriptions/nowhere") as job:
        assert job.process.wait(20) == 1
        event = job.read()
        while event["event"] != "error":  # the graph comes first
            event = job.read()
    assert "NOT_FOUND" in event["message"]
    assert "Traceback" not in job.log.read_text()
