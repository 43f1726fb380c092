"""The laws of job control: what must be so at every moment of a walk, and what when all has come to rest."""

from __future__ import annotations

from collections import defaultdict

from sqlmodel import col, select

from service.job_state import LAUNCHING, REQUESTED_ORDER, is_terminal
from service.local.dataflow.job import LocalJob
from service.models import Attempt, Job, JobEvent
from tests.hand_fleet import settled
from tests.walk_world import WalkWorld


async def hold_laws(world: WalkWorld) -> None:
    """What must be so at every moment. Raises AssertionError."""
    await settled()
    assert not world.broken.reports, world.broken.reports[0]
    alive: dict[str, list[LocalJob]] = defaultdict(list)
    for local in world.fleet.active():
        alive[local.proto.labels["signin-job"]].append(local)
    for jobs in alive.values():
        # One that is replaced already is on its way out; one that is to replace another may still fail.
        going_on = {job.id for job in jobs if not job.proto.replaced_by_job_id}
        heads = [job.id for job in jobs if job.id in going_on and job.proto.replace_job_id not in going_on]
        assert len(heads) <= 1, f"two live Dataflow jobs for one request: {heads}"
    for job in await world.jobs(*alive):
        state, requested, version = world.seen.get(job.id, (job.state, job.requested_state, 0))
        if is_terminal(state):
            assert job.state == state, f"{job.id}: the end {state} has become {job.state}"
        assert REQUESTED_ORDER.index(job.requested_state) >= REQUESTED_ORDER.index(requested)
        assert job.version >= version
        assert is_terminal(job.state) == (job.ended_at is not None)
        if job.ended_at is not None:
            living = [local.id for local in alive.get(job.id, [])]
            assert not living, f"{job.id} has ended as {job.state} and {living} live"
        world.seen[job.id] = (job.state, job.requested_state, job.version)


async def hold_agreement(world: WalkWorld) -> None:
    """What must be so when all faults have ended and all had time. Raises AssertionError."""
    async with world.database.session() as session:
        everything = (await session.exec(select(Job))).all()
        attempts = (await session.exec(select(Attempt))).all()
        events = (await session.exec(select(JobEvent).order_by(col(JobEvent.sequence)))).all()
    by_job: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        by_job[attempt.job_id].append(attempt)
    history: dict[str, list[JobEvent]] = defaultdict(list)
    for event in events:
        history[event.job_id].append(event)
    known = {attempt.dataflow_job_id: attempt for attempt in attempts if attempt.dataflow_job_id}
    locals_ = {job.id: job for job in world.fleet.launched}
    for local in world.fleet.active():
        assert local.id in known, f"the Dataflow job {local.id} is lost: {local.state.name}"
    for job in everything:
        _hold_history(job, history[job.id])
        standing = next(each for each in by_job[job.id] if each.number == job.attempt)
        assert job.state == standing.state
        kept = job.requested_state == "RUNNING" or job.ended_at is not None
        assert kept, f"{job.id} was asked to become {job.requested_state} and is {job.state}: {job.cause}"
        assert (job.ended_at is None) == any(each.ended_at is None for each in by_job[job.id])
        if standing.dataflow_job_id and job.state != "LOST":
            told = locals_[standing.dataflow_job_id].state.name.removeprefix("JOB_STATE_")
            assert job.state == told, f"{job.id} is {job.state}, Dataflow says {told}"
        assert job.state != "LOST", f"{job.id}: {job.cause}"


def _hold_history(job: Job, history: list[JobEvent]) -> None:
    assert [event.sequence for event in history] == list(range(1, job.version + 1))
    state = LAUNCHING
    for event in history:
        if event.kind == "state":
            assert event.detail["from"] == state, f"{job.id}: {event.detail} after {state}"
            assert not is_terminal(state)
            state = event.detail["to"]
    assert state == job.state
