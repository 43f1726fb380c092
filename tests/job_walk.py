"""A random walk of job control: clients, Dataflow, faults and crashes act by chance, and laws are held.

The Dataflow is the local server over the wire; its workers are not processes but move when the walk says
so. The database and the service's own modules are the real ones; what is added to them is a switch that
breaks a process off right before or right after a transaction, which is all that a crash can tell apart.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlmodel import select

from service import job_store
from service.config import Settings
from service.dataflow import DataflowError, Launch
from service.errors import ActionNotAllowedError, AlreadyManagedError, ProblemError
from service.job_control import UpdateRequest
from service.job_state import LAUNCHING
from service.local.dataflow import DataflowServer
from service.local.dataflow.fleet import Limits
from service.local.dataflow.job import State
from service.local.supervisor import Exit
from service.local.templates import Template
from service.models import Attempt, Job, new_id
from tests.hand_fleet import HandFleet, settled
from tests.job_laws import hold_agreement, hold_laws
from tests.walk_faults import HIDDEN_SECONDS, LOST_AND_HIDDEN, WalkFaults
from tests.walk_world import GRACE_SECONDS, OTHER_TEMPLATE, TEMPLATE, CrashError, WalkWorld

MOST_ACTIVE = 6


class Walk(WalkWorld):
    """One walk; `steps` counts by kind of step what was done, `crashes` how many processes died."""

    def __init__(self, server: DataflowServer, settings: Settings, seed: int) -> None:
        super().__init__(server, settings, seed)
        self.steps: Counter[str] = Counter()
        self.crashes = 0
        self.faults = WalkFaults(self)

    async def run(self, steps: int) -> None:
        """So many steps, the laws held after each, and now and then a rest after which all must agree."""
        acts = self._acts()
        names, weights = zip(*((act, weight) for act, weight in acts), strict=True)
        for number in range(1, steps + 1):
            act = self.chance.choices(names, weights)[0]
            self.steps[act.__name__.strip("_")] += 1
            self.now += timedelta(seconds=self.chance.choice((0.1, 1, 3)))
            self.faults.end_in_time()
            await self._survive(act)
            await hold_laws(self)
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
        active = [job for job in await self.jobs() if job.ended_at is None]
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
        await settled()

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
            self.faults.end()
            await self.replicas[0].tick()
        self.now += timedelta(seconds=seconds)

    async def _break(self) -> None:
        await self.faults.add()

    async def _ill_fated_launch(self) -> None:
        """A launch is made whose answer is lost, nothing shows it for a while, and it is asked to stop."""
        if not await self.faults.may_hide():
            return
        self.faults.set(LOST_AND_HIDDEN)
        await self._launch()
        newest = max(await self.jobs(), key=lambda job: job.id, default=None)
        if newest and self.chance.random() < 0.7:
            await self._control().stop(newest.id, self.chance.choice(("drain", "cancel")), "walk")
        for _ in range(self.chance.randrange(4)):
            await self._tick()

    async def _mend(self) -> None:
        self.faults.end()

    # The laws

    async def rest(self) -> None:
        """All faults end; then the service and Dataflow must agree about everything, by themselves."""
        self.faults.end()
        for _ in range(6):
            self.now += timedelta(seconds=GRACE_SECONDS + 5)
            await self.replicas[0].tick()
            await hold_laws(self)
        for _ in range(8):  # what still hangs in a worker is let go of, and looked at
            for job in self.fleet.active():
                if (worker := self.fleet.worker(job)) and (worker.asked or job.proto.replaced_by_job_id):
                    worker.end(Exit(0))
                elif job.state == State.JOB_STATE_PENDING:
                    self.fleet.said_running(job)
            await settled()
            self.now += timedelta(seconds=GRACE_SECONDS + 5)
            await self.replicas[1].tick()
            await hold_laws(self)
        await hold_agreement(self)


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
