"""What /metrics tells of the jobs: by the replica that looks after them, without a question at a scrape."""

from __future__ import annotations

import time

import pytest

from service.job_meters import JobMeters
from service.local.faults import Fault
from service.local.supervisor import Counter
from service.metrics import Metrics
from service.reconciler import Reconciler
from tests.job_world import outage
from tests.sample_metrics import exposed, labelled


class Replica:
    """A reconciler with metrics of its own, and the looks at the jobs' metrics."""

    def __init__(self, world):
        self.metrics = Metrics()
        self.reconciler = Reconciler(
            world.database, world.dataflow, world.settings, world.clock, metrics=self.metrics
        )
        self.meters = JobMeters(self.reconciler.watch, world.desk.telemetry, world.settings, self.metrics)

    def told(self):
        return exposed(self.metrics.snapshot(time.monotonic()))

    def jobs(self):
        return {key[1]: value for key, value in self.told().items() if key[0] == "signin_jobs" and value}


@pytest.fixture
def replica(world):
    return Replica(world)


async def test_active_jobs_are_counted_by_state_and_every_state_has_a_number(world, replica):
    assert "signin_jobs" not in {key[0] for key in replica.told()}
    assert replica.told()["signin_reconciler_lease_held",] == 0
    await replica.reconciler.tick_alone()
    told = replica.told()
    assert told["signin_reconciler_lease_held",] == 1
    assert told["signin_jobs", "RUNNING"] == told["signin_jobs_stale",] == 0
    job = await world.launch()
    await world.until(job["id"], "RUNNING")
    await replica.reconciler.tick_alone()
    assert replica.jobs() == {"RUNNING": 1}


async def test_a_job_that_was_not_observed_for_long_is_counted_as_stale(world, replica):
    job = await world.launch()
    await world.until(job["id"], "RUNNING")
    await replica.reconciler.tick_alone()
    assert replica.told()["signin_jobs_stale",] == 0
    world.fail(*outage("ListJobs", "GetJob"))
    world.clock.advance(minutes=5)
    await replica.reconciler.tick_alone()
    assert replica.told()["signin_jobs_stale",] == 1


async def test_the_end_of_a_job_is_counted_once_whoever_saw_it_first(world, replica):
    job = await world.launch()
    await world.until(job["id"], "RUNNING")
    await replica.reconciler.tick_alone()
    assert replica.told()["signin_jobs_ended_total", "CANCELLED"] == 0  # a rate needs it beforehand
    await world.http.post(f"/jobs/{job['id']}/cancel")
    await world.until(job["id"], "CANCELLED")
    for _ in range(3):
        await replica.reconciler.tick_alone()
    assert replica.told()["signin_jobs_ended_total", "CANCELLED"] == 1
    assert replica.jobs() == {}


async def test_a_launch_that_is_refused_is_counted_though_no_tick_ever_saw_the_job(world, replica):
    await replica.reconciler.tick_alone()
    world.fail(Fault(method="LaunchFlexTemplate", code="PERMISSION_DENIED"))
    answer = await world.http.post("/jobs", json={})
    assert answer.json()["state"] == "REJECTED"
    for _ in range(3):
        await replica.reconciler.tick_alone()
    assert replica.told()["signin_jobs_ended_total", "REJECTED"] == 1


async def test_a_replica_whose_lease_has_run_out_unrenewed_tells_nothing(world, replica, monkeypatch):
    await replica.reconciler.tick_alone()
    assert replica.told()["signin_reconciler_lease_held",] == 1
    later = time.monotonic() + world.settings.reconcile_lease_seconds
    monkeypatch.setattr("service.lease.time.monotonic", lambda: later)
    assert replica.told()["signin_reconciler_lease_held",] == 0


async def test_a_replica_without_the_lease_tells_nothing_and_counts_what_ended_when_it_takes_over(
    world, replica
):
    job = await world.launch()
    await world.until(job["id"], "RUNNING")
    await replica.reconciler.tick_alone()
    other = Replica(world)
    assert not await other.reconciler.tick_alone()
    assert other.told()["signin_reconciler_lease_held",] == 0
    assert other.jobs() == {}
    await world.http.post(f"/jobs/{job['id']}/cancel")
    await world.until(job["id"], "CANCELLED")
    await replica.reconciler.lease.release()
    assert replica.jobs() == {}
    await other.reconciler.tick_alone()
    assert other.told()["signin_jobs_ended_total", "CANCELLED"] == 1


async def test_a_jobs_counters_by_reason_come_from_a_look_in_the_background(world, replica):
    job = await world.launch()
    running = await world.until(job["id"], "RUNNING")
    await replica.reconciler.tick_alone()
    own = world.server._fleet.jobs[running["dataflow_job_id"]]
    counts = {
        "signins_parsed": 40,
        "rows_written": 39,
        "dead_letters": 2,
        "dead_letters_invalid_json": 2,
        "dead_letters_written": 2,
    }
    own.said_counters([Counter(name, value, "signin", "Rows") for name, value in counts.items()])
    await replica.meters.look()
    before = world.calls()
    told = replica.told()
    assert world.calls() == before
    key = (job["id"], job["name"])
    assert told["signin_job_metrics_known", *key] == 1
    assert told["signin_job_rows_total", *key] == 39
    assert labelled(told, "signin_job_messages_total") == {"signin": 40, "dead_letter": 2}
    letters = labelled(told, "signin_job_dead_letters_total")
    assert letters["invalid_json"] == 2
    assert letters["date_missing"] == 0
    assert "written" not in letters


async def test_where_dataflow_is_away_the_last_numbers_stay_and_are_marked(world, replica):
    job = await world.launch()
    await world.until(job["id"], "RUNNING")
    await replica.reconciler.tick_alone()
    await replica.meters.look()
    key = (job["id"], job["name"])
    assert replica.told()["signin_job_vcpus", *key] == 1
    world.fail(*outage())
    world.desk.telemetry._looks._seconds = 0  # what is kept is old by now
    await replica.meters.look()
    assert replica.told()["signin_job_metrics_known", *key] == 0
    assert replica.told()["signin_job_vcpus", *key] == 1
    await replica.reconciler.lease.release()
    assert ("signin_job_vcpus", *key) not in replica.told()
