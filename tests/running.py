"""`signin up` as a user runs it, in a process of its own, and what tests do with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

import grpc
import httpx
from google.pubsub_v1 import types

from service.local.faults import Fault, set_faults
from service.local.running import read_running
from transforms import bigquery_tables

MARK = "MARK_OF_SIGNIN_TESTS"
PROJECT = "signin-local"
TOPIC = f"projects/{PROJECT}/topics/topic-user-signin"
START_SECONDS = 60
DATE = "2017-10-17T20:57:17.338320Z"


def until(condition, seconds=30.0, interval=0.05):
    """Polls until the condition is true; returns what it returned."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not so within {seconds} s: {condition}"
        time.sleep(interval)
    return result


def marked(mark):
    """The living processes that were started with the mark in their environment: pid to command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it ended while we looked, or is not ours
    found.pop(os.getpid(), None)
    return {pid: command for pid, command in found.items() if command}


def clean_environment():
    """The environment without anything that points a Google client or this service somewhere."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SIGNIN_", "GOOGLE_", "OTEL_")) and not name.endswith("_EMULATOR_HOST")
    }


def environment(**variables):
    """The environment of a machine that knows nothing of Google."""
    return {**clean_environment(), "CLOUDSDK_CONFIG": "/nonexistent", "NO_GCE_CHECK": "true", **variables}


class Up:
    """One `signin up` on free ports; its data directory is `.signin` in `directory`."""

    def __init__(self, directory, **variables):
        self.directory = directory
        self._variables = variables
        self.mark = uuid.uuid4().hex
        self.environment = {}
        self._process = None

    def start(self):
        options = ["--port", "0", "--pubsub-port", "0", "--dataflow-port", "0", "--bigquery-port", "0"]
        with (self.directory / "up.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service", "up", *options],
                cwd=self.directory,
                env=clean_environment() | self._variables | {MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.environment = until(self._announced, START_SECONDS)
        return self

    def _announced(self):
        assert self._process.poll() is None, (self.directory / "up.log").read_text()
        running = read_running(self.directory / ".signin")
        return running if running and "SIGNIN_URL" in running else None

    @property
    def url(self):
        return self.environment["SIGNIN_URL"]

    def kill(self):
        self._process.kill()
        self._process.wait()

    def stop(self):
        """Ends it as Ctrl-C does; returns the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(timeout=40)
        finally:
            self._process.kill()

    def left(self):
        return marked(self.mark)

    def get(self, path):
        return httpx.get(self.url + path, timeout=30).raise_for_status().json()

    def post(self, path, body=None, **headers):
        return httpx.post(self.url + path, json={} if body is None else body, headers=headers, timeout=30)

    def launch(self):
        """Launches the job and waits until it runs; returns its id."""
        job = self.post("/jobs").raise_for_status().json()
        self.await_state(job["id"], "RUNNING")
        return job["id"]

    def await_state(self, job_id, state, seconds=40.0):
        return until(lambda: self.get(f"/jobs/{job_id}")["state"] == state, seconds)

    def drain(self, job_id):
        self.post(f"/jobs/{job_id}/drain").raise_for_status()
        self.await_state(job_id, "DRAINED")

    def job_processes(self):
        return [pid for pid, command in self.left().items() if "lifeline pipeline.user_signin" in command]

    def publish(self, first, count):
        """Publishes events `first` to `first + count - 1` straight to the topic, 1,000 a call."""
        with grpc.insecure_channel(self.environment["PUBSUB_EMULATOR_HOST"]) as channel:
            stub = channel.unary_unary(
                "/google.pubsub.v1.Publisher/Publish",
                types.PublishRequest.serialize,
                types.PublishResponse.deserialize,
            )
            for start in range(first, first + count, 1000):
                stop = min(start + 1000, first + count)
                messages = [{"data": event(number)} for number in range(start, stop)]
                stub(types.PublishRequest(topic=TOPIC, messages=messages), timeout=30)

    def pubsub_fault(self, *faults):
        """Sets the faults of the local Pub/Sub; none ends them."""
        set_faults(self.environment["PUBSUB_EMULATOR_HOST"], faults)

    def dataflow_fault(self, *faults):
        """Sets the faults of the local Dataflow; none ends them."""
        set_faults(self.environment["DATAFLOW_EMULATOR_HOST"], faults)

    def bigquery_fault(self, *faults):
        """Sets the faults of the local BigQuery; none ends them."""
        body = [{"method": f.method, "code": f.code, "delay_seconds": f.delay_seconds} for f in faults]
        address = self.environment["BIGQUERY_EMULATOR_HOST"]
        httpx.post(f"{address}/signin/faults", json=body, timeout=30).raise_for_status()

    def rows(self):
        """How often each event id stands in the table."""
        client = bigquery_tables.client(PROJECT, self.environment["BIGQUERY_EMULATOR_HOST"])
        try:
            job = client.query("SELECT event_id FROM user_signin.signins", timeout=30)
            return Counter(row["event_id"] for row in job.result(timeout=30))
        finally:
            client.close()


def event_id(number):
    return f"event-{number:05d}"


def event(number):
    return b'{"userid": "u%d", "date": "%s", "event_id": "%s"}' % (
        number % 100,
        DATE.encode(),
        event_id(number).encode(),
    )


SLOW_INSERTS = Fault(method="insertAll", delay_seconds=2.0)
