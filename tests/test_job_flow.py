"""The whole life of a job under `signin up` while events flow: update, a failed update, scale, drain."""

from __future__ import annotations

import threading
from collections import Counter

import grpc
import httpx
import pytest
from google.pubsub_v1 import types

from tests.running import DATE, TOPIC, Up, until
from transforms import bigquery_tables

pytestmark = pytest.mark.timeout(240)

PAUSE_SECONDS = 0.05
BATCH = 20
OLD, NEW = "1.0-old", "2.0-new"


class Flow(threading.Thread):
    """Sends batches of sign-ins until `end`; `answered` are the ids of those that were taken."""

    def __init__(self, url):
        super().__init__(name="flow", daemon=True)
        self.answered = set()
        self.failures = []
        self._url = url
        self._ending = threading.Event()

    def run(self):
        with httpx.Client(base_url=self._url, timeout=30) as client:
            number = 0
            while not self._ending.wait(PAUSE_SECONDS):
                ids = [f"flow-{number + place:06d}" for place in range(BATCH)]
                number += BATCH
                body = [{"userid": "u1", "date": DATE, "event_id": each} for each in ids]
                answer = client.post("/events/signin/batch", json=body)
                if answer.status_code == 202:
                    self.answered.update(ids)
                else:
                    self.failures.append(answer.text)

    def more(self, count):
        """Returns when so many more have been answered."""
        wanted = len(self.answered) + count
        until(lambda: len(self.answered) >= wanted)

    def end(self):
        self._ending.set()
        self.join(30)
        assert not self.is_alive()
        assert self.failures == []


@pytest.fixture
def up(tmp_path):
    up = Up(tmp_path).start()
    yield up
    assert up.stop() == 0


@pytest.fixture
def flow(up):
    flow = Flow(up.url)
    yield flow
    flow.end()


def publish_junk(up, text):
    """Publishes what can become no row."""
    with grpc.insecure_channel(up.environment["PUBSUB_EMULATOR_HOST"]) as channel:
        stub = channel.unary_unary(
            "/google.pubsub.v1.Publisher/Publish",
            types.PublishRequest.serialize,
            types.PublishResponse.deserialize,
        )
        stub(types.PublishRequest(topic=TOPIC, messages=[{"data": text}]), timeout=30)


def letters(up):
    """The dead letters: payload to the version of the pipeline that wrote it."""
    client = bigquery_tables.client("signin-local", up.environment["BIGQUERY_EMULATOR_HOST"])
    try:
        query = "SELECT payload, pipeline_version FROM user_signin.dead_letters"
        found = client.query(query, timeout=30).result(timeout=30)
        return {row["payload"]: row["pipeline_version"] for row in found}
    finally:
        client.close()


def updated(up, job_id, **body):
    """Asks for an update; returns the job when no replacement is under way any more."""
    answer = up.post(f"/jobs/{job_id}/update", body)
    assert answer.status_code == 202, answer.text

    def settled():
        job = up.get(f"/jobs/{job_id}")
        # The new attempt stands first as it was last seen, which may have been before it ran.
        return job if job["pending_attempt"] is None and job["state"] == "RUNNING" else None

    return until(settled, 60)


def attempt_states(up, job_id):
    return [attempt["state"] for attempt in up.get(f"/jobs/{job_id}")["attempts"]]


def junk_becomes_a_letter_of(up, text, version):
    publish_junk(up, text)
    until(lambda: text in letters(up))
    assert letters(up)[text] == version


def fail_an_update(up, job_id):
    """A replacement that does not fit the old graph changes nothing."""
    before = up.get(f"/jobs/{job_id}")
    mappings = {"No such step": "Another step"}
    after = updated(up, job_id, parameters={"pipeline_version": NEW}, transform_name_mappings=mappings)
    assert (after["state"], after["dataflow_job_id"]) == ("RUNNING", before["dataflow_job_id"])
    assert after["parameters"] == before["parameters"]
    assert [attempt["state"] for attempt in after["attempts"]] == ["RUNNING", "FAILED"]
    assert "steps that the old job does not have: No such step" in after["attempts"][1]["error"]


def update(up, job_id):
    before = up.get(f"/jobs/{job_id}")
    after = updated(up, job_id, parameters={"pipeline_version": NEW})
    assert (after["state"], after["attempt"]) == ("RUNNING", 3)
    assert after["dataflow_job_id"] not in {attempt["dataflow_job_id"] for attempt in before["attempts"]}
    until(lambda: attempt_states(up, job_id) == ["UPDATED", "FAILED", "RUNNING"])


def scale(up, job_id):
    bounds = {"min_workers": 1, "max_workers": 3}
    scaled = httpx.patch(f"{up.url}/jobs/{job_id}/autoscaling", json=bounds, timeout=30)
    assert scaled.status_code in (200, 202), scaled.text
    assert (scaled.json()["min_workers"], scaled.json()["max_workers"]) == (1, 3)
    told = "min_num_workers 1, max_num_workers 3"
    until(lambda: any(told in event["text"] for event in up.get(f"/jobs/{job_id}/messages")["scaling"]))


def test_a_job_is_updated_scaled_and_drained_while_events_flow_and_none_is_lost_or_invented(up, flow):
    job = up.post("/jobs", {"parameters": {"pipeline_version": OLD}}).raise_for_status().json()["id"]
    up.await_state(job, "RUNNING")
    flow.start()
    flow.more(200)
    junk_becomes_a_letter_of(up, b"junk before", OLD)
    fail_an_update(up, job)
    flow.more(200)
    junk_becomes_a_letter_of(up, b"junk after the failed update", OLD)
    update(up, job)
    flow.more(200)
    junk_becomes_a_letter_of(up, b"junk after the update", NEW)
    scale(up, job)
    flow.more(200)
    flow.end()
    until(lambda: len(up.rows()) >= len(flow.answered), 60)
    metrics = until(lambda: (m := up.get(f"/jobs/{job}/metrics"))["backlog"]["messages"] == 0 and m)
    assert metrics["vcpus"] == 1
    assert not [name for name in metrics["counters"] if "latency" in name or "freshness" in name]
    for name in ("publish_to_row_latency_ms", "row_freshness_ms"):
        told = metrics["distributions"][name]
        assert told["count"] > 0
        assert 0 <= told["min"] <= told["mean"] <= told["max"]
        assert told["sum"] == pytest.approx(told["mean"] * told["count"])
    up.drain(job)
    assert attempt_states(up, job) == ["UPDATED", "FAILED", "DRAINED"]
    assert up.rows() == Counter(dict.fromkeys(flow.answered, 1))
