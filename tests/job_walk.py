"""A random walk of job control: clients, Dataflow, faults and crashes act by chance, and laws are held.

The Dataflow is the local server over the wire; its workers are not processes but move when the walk says
so. The database and the service's own modules are the real ones; what is added to them is a switch that
breaks a process off right before or right after a transaction, which is all that a crash can tell apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlmodel import col, or_, select

from service import job_store
from service.clients import Clients
from service.config import Settings
from service.dataflow import Dataflow, DataflowError, Launch
from service.db import Database
from service.errors import ActionNotAllowedError, AlreadyManagedError, ProblemError
from service.job_control import UpdateRequest
from service.job_state import LAUNCHING, REQUESTED_ORDER, is_terminal
from service.local.dataflow import DataflowServer
from service.local.dataflow.fleet import Fleet, Limits
from service.local.dataflow.job import LocalJob, State
from service.local.faults import Fault
from service.local.supervisor import Exit
from service.local.templates import Template
from service.models import Attempt, Job, JobEvent, new_id
from service.reconciler import Reconciler

TEMPLATE = "gs://tests/walk.json"
OTHER_TEMPLATE = "gs://tests/walk-2.json"
GRACE_SECONDS = 60
HIDDEN_SECONDS = 30  # well within the grace: what is hidden for longer cannot be told from what is not there
MOST_ACTIVE = 6
START = "2026-01-01T00:00:00+00:00"
TRANSIENT = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNKNOWN", "ABORTED")
REFUSALS = ("INVALID_ARGUMENT", "PERMISSION_DENIED", "FAILED_PRECONDITION")
# A launch is made, and nothing shows it for a while.
LOST_AND_HIDDEN = [Fault("LaunchFlexTemplate", "UNAVAILABLE", after=True), Fault(hide="job")]
METHODS = ("LaunchFlexTemplate", "UpdateJob", "GetJob", "ListJobs", "*")


class CrashError(BaseException):
    """The process is gone; nothing in it may catch this."""


class FrailDatabase(Database):
    """A database whose user dies at the transaction that `fuse` counts down to."""

    fuse: int | None = None

    def _burn(self) -> None:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                self.fuse = None
                raise CrashError

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        self._burn()
        async with super().transaction() as session:
            yield session
        self._burn()


class Broken(logging.Handler):
    """What the reconciler reports as broken and goes on from; here each is a broken law."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.reports: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.reports.append(self.format(record))


class HandWorker:
    """A worker that does what the walk says, and what it cannot refuse."""

    def __init__(self) -> None:
        self.asked = ""
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    async def run(self) -> Exit:
        return await self._exit

    def stop(self, number: Any, grace_seconds: float | None = None) -> None:
        self.asked = str(number.name)

    def kill(self, reason: str) -> None:
        self.end(Exit(-9, reason))

    def end(self, exit_: Exit) -> None:
        if not self._exit.done():
            self._exit.set_result(exit_)


class HandFleet(Fleet):
    """The local server's fleet with workers by hand. `launched` keeps every job that there ever was."""

    launched: list[LocalJob]

    async def _run_worker(self, job: LocalJob) -> None:
        self._move(job, State.JOB_STATE_PENDING, "Starting 1 worker, by hand.")
        worker = HandWorker()
        self._workers[job.id] = worker  # type: ignore[assignment]
        self._ended(job, await worker.run())

    def launch(self, job: LocalJob) -> None:
        super().launch(job)
        self.launched.append(job)

    def worker(self, job: LocalJob) -> HandWorker | None:
        return self._workers.get(job.id)  # type: ignore[return-value]


class Walk:
    """One walk; `steps` counts by kind of step what was done, `crashes` how many processes died."""

    def __init__(self, server: DataflowServer, settings: Settings, seed: int) -> None:
        self.chance = random.Random(seed)
        self.steps: Counter[str] = Counter()
        self.crashes = 0
        self.server = server
        self.settings = settings
        self.database = FrailDatabase(settings)
        self.clients = Clients(settings)
        self.dataflow = Dataflow(self.clients, settings)
        self.now = datetime.fromisoformat(START)
        self.replicas = [self._replica(), self._replica()]
        self._faults: list[Fault] = []
        self._hidden_until: datetime | None = None
        self._seen: dict[str, tuple[str, str, int]] = {}
        self.broken = Broken()
        logging.getLogger("service.reconciler").addHandler(self.broken)

    @property
    def fleet(self) -> HandFleet:
        fleet = self.server._fleet
        assert isinstance(fleet, HandFleet)
        return fleet

    def _replica(self) -> Reconciler:
        return Reconciler(self.database, self.dataflow, self.settings, lambda: self.now)

    async def close(self) -> None:
        logging.getLogger("service.reconciler").removeHandler(self.broken)
        self.server.faults.set([])
        await self.clients.close()
        await self.database.close()

    async def run(self, steps: int) -> None:
        """So many steps, the laws held after each, and now and then a rest after which all must agree."""
        acts = self._acts()
        names, weights = zip(*((act, weight) for act, weight in acts), strict=True)
        for number in range(1, steps + 1):
            act = self.chance.choices(names, weights)[0]
            self.steps[act.__name__.strip("_")] += 1
            self.now += timedelta(seconds=self.chance.choice((0.1, 1, 3)))
            if self._hidden_until and self.now >= self._hidden_until:
                self._end_faults()
            await self._survive(act)
            await self.hold_laws()
            if number % 250 == 0 or number == steps:
                await self.rest()

    def _acts(self) -> list[tuple[Callable[[], Awaitable[None]], int]]:
        return [
            (self._launch, 10),
            (self._tick, 30),
            (self._two_at_once, 6),
            (self._drain, 5),
            (self._cancel, 4),
            (self._force_cancel, 2),
            (self._update, 12),
            (self._scale, 4),
            (self._work, 40),
            (self._foreign_hand, 3),
            (self._foreign_update, 2),
            (self._adopt, 4),
            (self._ill_fated_launch, 3),
            (self._pass_time, 8),
            (self._break, 14),
            (self._mend, 8),
        ]

    async def _survive(self, act: Callable[[], Awaitable[None]]) -> None:
        """Does something in a process that may die of it; another one goes on."""
        if self.chance.random() < 0.15:
            self.database.fuse = self.chance.randrange(8)
        try:
            await act()
        except CrashError:
            self.crashes += 1
            self.replicas[self.chance.randrange(2)] = self._replica()
        except (ProblemError, DataflowError):
            pass  # what a caller is told
        finally:
            self.database.fuse = None

    # What clients do

    async def _launch(self) -> None:
        active = [job for job in await self._jobs() if job.ended_at is None]
        if len(active) >= MOST_ACTIVE:
            return await self._stop_one("cancel")
        job_id = new_id(self.now)
        job = Job(
            id=job_id,
            name=f"walk-{job_id[-10:]}",
            base_name="walk",
            pipeline="user-signin",
            project=self.settings.project,
            region=self.settings.region,
            template_path=TEMPLATE,
            state=LAUNCHING,
            launch_token=f"{self.chance.getrandbits(128):032x}",
            labels={"signin-job": job_id},
            created_at=self.now,
            restart_policy=self.chance.choice(("never", "on-failure")),
            restart_limit=2,
        )
        async with self.database.transaction() as session:
            await job_store.insert(session, job, "walk")
        await self._control().launch(job)
        return None

    async def _drain(self) -> None:
        await self._stop_one("drain")

    async def _cancel(self) -> None:
        await self._stop_one("cancel")

    async def _stop_one(self, action: Any) -> None:
        if job := await self._any_job():
            options: dict[str, Any] = {}
            if action == "drain" and self.chance.random() < 0.5:
                options = {"deadline_seconds": 120, "on_deadline": self.chance.choice(("wait", "cancel"))}
            await self._control().stop(job.id, action, "walk", **options)

    async def _force_cancel(self) -> None:
        if job := await self._any_job():
            if job.cancel_requested_at and self.chance.random() < 0.5:
                self.now += timedelta(minutes=30)
            await self._control().force_cancel(job.id, "walk")

    async def _update(self) -> None:
        if job := await self._any_job():
            asked = UpdateRequest(OTHER_TEMPLATE, job.parameters, job.environment, job.attempt)
            await self._control().update(job.id, asked, "walk")

    async def _scale(self) -> None:
        if job := await self._any_job():
            await self._control().scale(job.id, self.chance.randint(1, 3), self.chance.randint(3, 9), "walk")

    # What the service does by itself

    async def _tick(self) -> None:
        await self.chance.choice(self.replicas).tick()

    async def _two_at_once(self) -> None:
        outcomes = await asyncio.gather(
            self.replicas[0].tick(),
            self.chance.choice((self._tick, self._update, self._cancel, self._drain, self._launch))(),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    # What Dataflow does

    async def _work(self) -> None:
        """A worker takes a step: it begins to work, does what it was told, or breaks."""
        busy = [(job, worker) for job in self.fleet.active() if (worker := self.fleet.worker(job))]
        if not busy:
            return
        job, worker = self.chance.choice(busy)
        chance = self.chance.random()
        if chance < 0.12:
            worker.end(Exit(1, last_lines=("RuntimeError: by chance",)))
        elif worker.asked or job.proto.replaced_by_job_id:
            worker.end(Exit(0))
        elif job.state == State.JOB_STATE_PENDING:
            self.fleet.said_running(job)
        await _settled()

    async def _foreign_hand(self) -> None:
        """Somebody drains or cancels a job of ours in Google's console."""
        if running := [job for job in self.fleet.active() if job.state == State.JOB_STATE_RUNNING]:
            job = self.chance.choice(running)
            if not job.proto.replaced_by_job_id:
                self.chance.choice((self.fleet.drain, self.fleet.cancel))(job)

    async def _foreign_update(self) -> None:
        """Somebody replaces a job of ours with another tool, which copies its labels but not its token."""
        if running := [job for job in self.fleet.active() if job.state == State.JOB_STATE_RUNNING]:
            job = self.chance.choice(running)
            wanted = Launch(
                job.proto.project_id,
                job.proto.location,
                job.proto.name,
                OTHER_TEMPLATE,
                "somebody-else",
                labels={"signin-job": job.proto.labels["signin-job"]},
            )
            await self.dataflow.launch(wanted, update=True)

    async def _adopt(self) -> None:
        """Somebody wants to adopt a job that is one of ours, or took the place of one."""
        active = self.fleet.active()
        async with self.database.session() as session:
            known = set((await session.exec(select(Attempt.dataflow_job_id))).all())
        # Of the second in a row of replacements nobody knows whose it is.
        ours = [job for job in active if (job.proto.replace_job_id or None) in {None, *known}]
        if not ours:
            return
        proto = self.chance.choice(ours).proto
        with contextlib.suppress(AlreadyManagedError, ActionNotAllowedError):
            taken = await self._control().adopt(proto.project_id, proto.location, proto.id, "walk")
            raise AssertionError(f"{taken} has taken {proto.id}, which is managed")

    # What happens in between

    async def _pass_time(self) -> None:
        seconds = self.chance.choice((20, 65, 300, 700))
        if seconds > HIDDEN_SECONDS / 2:
            self._end_faults()
            await self.replicas[0].tick()
        self.now += timedelta(seconds=seconds)

    async def _break(self) -> None:
        """A few calls to come fail, before or after they took effect, or do not see everything."""
        method = self.chance.choice(METHODS)
        fault = Fault(method=method, code=self.chance.choice(TRANSIENT), times=self.chance.randint(1, 3))
        kind = self.chance.choice(
            ("fail", "lose the answer", "refuse", "hide", "hide labels", "strange word")
        )
        if kind == "lose the answer":
            fault = replace_fault(fault, after=True)
        elif kind == "refuse":
            fault = Fault(method="LaunchFlexTemplate", code=self.chance.choice(REFUSALS), times=1)
            if self.chance.random() < 0.5:
                fault = Fault(method="UpdateJob", code="FAILED_PRECONDITION", times=2)
        elif kind in ("hide", "hide labels"):
            shown = self.chance.choice(("ListJobs", "GetJob", "*"))
            fault = Fault(method=shown, hide="job" if kind == "hide" else "labels")
        elif kind == "strange word":
            fault = Fault(
                method="GetJob", state=self.chance.choice(("77", "PAUSED", "STOPPED", "UNKNOWN")), times=3
            )
        faults = [*self._faults, fault][-3:]
        if kind == "lose and hide":
            faults = LOST_AND_HIDDEN
        if not await self._may_hide():
            faults = [each for each in faults if not each.hide]
        self._set_faults(faults)

    async def _ill_fated_launch(self) -> None:
        """A launch is made whose answer is lost, nothing shows it for a while, and it is asked to stop."""
        if not await self._may_hide():
            return
        self._set_faults(LOST_AND_HIDDEN)
        await self._launch()
        newest = max(await self._jobs(), key=lambda job: job.id, default=None)
        if newest and self.chance.random() < 0.7:
            await self._control().stop(newest.id, self.chance.choice(("drain", "cancel")), "walk")
        for _ in range(self.chance.randrange(4)):
            await self._tick()

    async def _mend(self) -> None:
        self._end_faults()

    async def _may_hide(self) -> bool:
        """Whether a new while of hiding may begin: what was hidden in the last one has been seen since."""
        unknown = col(Attempt.dataflow_job_id).is_(None) | (col(Attempt.missing_looks) > 0)
        waiting = select(Attempt).where(col(Attempt.ended_at).is_(None), unknown)
        async with self.database.session() as session:
            is_waiting = (await session.exec(waiting.limit(1))).first() is not None
        return any(each.hide for each in self._faults) or not is_waiting

    def _end_faults(self) -> None:
        self._set_faults([])
        self._hidden_until = None

    def _set_faults(self, faults: list[Fault]) -> None:
        if faults:
            self._hidden_until = self._hidden_until or self.now + timedelta(seconds=HIDDEN_SECONDS)
        self._faults = faults
        self.server.faults.set(faults)

    # The laws

    async def hold_laws(self) -> None:
        """What must be so at every moment. Raises AssertionError."""
        await _settled()
        assert not self.broken.reports, self.broken.reports[0]
        alive: dict[str, list[LocalJob]] = defaultdict(list)
        for local in self.fleet.active():
            alive[local.proto.labels["signin-job"]].append(local)
        for jobs in alive.values():
            # One that is replaced already is on its way out; one that is to replace another may still fail.
            going_on = {job.id for job in jobs if not job.proto.replaced_by_job_id}
            heads = [
                job.id for job in jobs if job.id in going_on and job.proto.replace_job_id not in going_on
            ]
            assert len(heads) <= 1, f"two live Dataflow jobs for one request: {heads}"
        for job in await self._jobs(*alive):
            state, requested, version = self._seen.get(job.id, (job.state, job.requested_state, 0))
            if is_terminal(state):
                assert job.state == state, f"{job.id}: the end {state} has become {job.state}"
            assert REQUESTED_ORDER.index(job.requested_state) >= REQUESTED_ORDER.index(requested)
            assert job.version >= version
            assert is_terminal(job.state) == (job.ended_at is not None)
            if job.ended_at is not None:
                living = [local.id for local in alive.get(job.id, [])]
                assert not living, f"{job.id} has ended as {job.state} and {living} live"
            self._seen[job.id] = (job.state, job.requested_state, job.version)

    async def rest(self) -> None:
        """All faults end; then the service and Dataflow must agree about everything, by themselves."""
        self._end_faults()
        for _ in range(6):
            self.now += timedelta(seconds=GRACE_SECONDS + 5)
            await self.replicas[0].tick()
            await self.hold_laws()
        for _ in range(8):  # what still hangs in a worker is let go of, and looked at
            for job in self.fleet.active():
                if (worker := self.fleet.worker(job)) and (worker.asked or job.proto.replaced_by_job_id):
                    worker.end(Exit(0))
                elif job.state == State.JOB_STATE_PENDING:
                    self.fleet.said_running(job)
            await _settled()
            self.now += timedelta(seconds=GRACE_SECONDS + 5)
            await self.replicas[1].tick()
            await self.hold_laws()
        await self._agree()

    async def _agree(self) -> None:
        async with self.database.session() as session:
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
        locals_ = {job.id: job for job in self.fleet.launched}
        for local in self.fleet.active():
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

    async def _jobs(self, *ids: str) -> list[Job]:
        async with self.database.session() as session:
            wanted = or_(col(Job.ended_at).is_(None), col(Job.id).in_(ids))
            recent = select(Job).where(wanted)
            active = list((await session.exec(recent)).all())
            gone = [job_id for job_id in self._seen if job_id not in {job.id for job in active}]
            gone = [job_id for job_id in gone if not is_terminal(self._seen[job_id][0])]
            ended = (await session.exec(select(Job).where(col(Job.id).in_(gone)))).all()
        return [*active, *ended]

    async def _any_job(self) -> Job | None:
        jobs = await self._jobs()
        return self.chance.choice(jobs) if jobs else None

    def _control(self) -> Any:
        return self.chance.choice(self.replicas).control


def replace_fault(fault: Fault, **members: Any) -> Fault:
    import msgspec

    return msgspec.structs.replace(fault, **members)


def _hold_history(job: Job, history: list[JobEvent]) -> None:
    assert [event.sequence for event in history] == list(range(1, job.version + 1))
    state = LAUNCHING
    for event in history:
        if event.kind == "state":
            assert event.detail["from"] == state, f"{job.id}: {event.detail} after {state}"
            assert not is_terminal(state)
            state = event.detail["to"]
    assert state == job.state


async def _settled() -> None:
    """Lets the tasks of the local server do what they are about to."""
    for _ in range(5):
        await asyncio.sleep(0)


@asynccontextmanager
async def walking(directory: Path, database_url: str, seed: int) -> AsyncIterator[Walk]:
    templates = {TEMPLATE: Template("tests.waiting_job"), OTHER_TEMPLATE: Template("tests.waiting_job")}
    limits = Limits(active_jobs=1000, finished_jobs=400)
    server = DataflowServer(directory / "dataflow", templates=templates, limits=limits)
    fleet = HandFleet(server._store, server._command, limits)
    fleet.launched = []
    server._fleet = fleet
    async with server:
        settings = Settings(
            _env_file=None,
            database_url=database_url,
            template_path=TEMPLATE,
            dataflow_emulator_host=server.address,
            dataflow_deadline_seconds=5.0,
            launch_grace_seconds=GRACE_SECONDS,
            reconcile_interval_seconds=1.0,
        )
        walk = Walk(server, settings, seed)
        try:
            yield walk
        finally:
            await walk.close()
            for job in fleet.active():
                if worker := fleet.worker(job):
                    worker.end(Exit(0))
