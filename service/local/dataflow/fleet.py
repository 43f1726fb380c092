"""The jobs and their workers: who runs, who ends how, and what a restart of the server makes of them."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.local.dataflow.job import Importance, LocalJob, State
from service.local.dataflow.replacement import incompatibility, pending_replacement, to_be_replaced
from service.local.dataflow.store import JobStore
from service.local.log_lines import Level
from service.local.supervisor import Command, Counter, Exit, Worker

log = logging.getLogger(__name__)

_BEFORE_DRAIN = frozenset({State.JOB_STATE_QUEUED, State.JOB_STATE_PENDING, State.JOB_STATE_RUNNING})


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one server; seconds and numbers of jobs."""

    active_jobs: int = 25
    finished_jobs: int = 1_000
    startup_seconds: float = 300.0
    cancel_grace_seconds: float = 5.0
    close_grace_seconds: float = 10.0
    replace_grace_seconds: float = 60.0
    flush_seconds: float = 0.5


class Fleet:
    """All jobs of one server by id, and a task with a worker for each active one."""

    def __init__(self, store: JobStore, command: Callable[[LocalJob], Command], limits: Limits) -> None:
        self.jobs: dict[str, LocalJob] = {}
        self.limits = limits
        self._store = store
        self._command = command
        self._workers: dict[str, Worker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._flusher: asyncio.Task[None] | None = None
        self._closing = False

    def next_number(self) -> int:
        """The number of the next launch."""
        return max((job.number for job in self.jobs.values()), default=-1) + 1

    def active(self) -> list[LocalJob]:
        """The jobs in no terminal state, oldest first."""
        return [job for job in self.jobs.values() if job.is_active]

    def launch(self, job: LocalJob) -> None:
        """Stores the job and starts it. Raises OSError, with nothing started, where it cannot be stored.

        One that replaces another job takes over when it runs: until then the other goes on.
        """
        self._store.save(job)
        self.jobs[job.id] = job
        self._start(job)

    def drain(self, job: LocalJob) -> None:
        """Lets a RUNNING job finish what it holds. Without a time limit, as Dataflow: a cancel ends it."""
        job.proto.requested_state = State.JOB_STATE_DRAINED
        self._move(job, State.JOB_STATE_DRAINING, "Draining was requested: the worker stops reading.")
        self._stop_worker(job, signal.SIGTERM)

    def cancel(self, job: LocalJob, *, force: bool = False) -> None:
        """Ends an active job; with `force`, without any grace."""
        if job.state != State.JOB_STATE_CANCELLING:
            job.proto.requested_state = State.JOB_STATE_CANCELLED
            self._move(
                job, State.JOB_STATE_CANCELLING, f"Cancel request is committed for workflow job: {job.id}."
            )
            self._stop_worker(job, signal.SIGINT, self.limits.cancel_grace_seconds)
        if job.id not in self._workers:
            self._move(job, State.JOB_STATE_CANCELLED, "Cancelled before a worker was started.")
        elif force:
            self._workers[job.id].kill("cancelled by force")

    def resume(self) -> None:
        """Takes up the stored jobs: those that ran get a new worker, those that were ending have ended."""
        self.jobs = {job.id: job for job in self._store.load()}
        for job in self.active():
            if job.workers:
                job.scaled(0, "The worker ended with the server.")
            if job.state == State.JOB_STATE_DRAINING:
                self._move(job, State.JOB_STATE_DRAINED, "The worker ended with the server while draining.")
            elif job.state == State.JOB_STATE_CANCELLING:
                self._move(job, State.JOB_STATE_CANCELLED, "The worker ended with the server.")
            elif job.proto.replaced_by_job_id in self.jobs:
                self._move(
                    job, State.JOB_STATE_UPDATED, "The worker ended with the server during the update."
                )
            else:
                text = "The server was restarted: the worker is replaced."
                if job.state == State.JOB_STATE_RUNNING:
                    self._move(job, State.JOB_STATE_PENDING, text, Importance.JOB_MESSAGE_WARNING)
                else:
                    job.tell(text, Importance.JOB_MESSAGE_WARNING)
                self._start(job)
        self._prune()
        self._flusher = asyncio.create_task(self._flush(), name="flush jobs")

    async def close(self) -> None:
        """Ends every worker softly, by force after the grace. The jobs keep their state for `resume`."""
        self._closing = True
        for worker in self._workers.values():
            worker.stop(signal.SIGTERM, self.limits.close_grace_seconds)
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._flusher:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)
        for job in self.jobs.values():
            if job.changed:
                self._save(job)

    def _start(self, job: LocalJob) -> None:
        task = asyncio.create_task(self._run(job), name=f"job {job.id}")
        self._tasks[job.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(job.id, None))

    async def _run(self, job: LocalJob) -> None:
        try:
            if job.is_active and job.doom:
                self._fail(job, job.doom)
            elif job.is_active and not self._closing:
                await self._run_worker(job)
        except Exception as error:  # a job must end with a reason, whatever happens to its worker
            log.exception("The worker of job %s cannot be run", job.id)
            if job.state == State.JOB_STATE_CANCELLING:
                self._move(job, State.JOB_STATE_CANCELLED, f"The job is cancelled; its worker: {error}")
            elif job.is_active and not self._closing:
                self._fail(job, f"The worker cannot be run: {error}")
        finally:
            self._workers.pop(job.id, None)
            self._prune()

    async def _run_worker(self, job: LocalJob) -> None:
        if job.state != State.JOB_STATE_PENDING:
            self._move(job, State.JOB_STATE_PENDING, "Starting 1 worker, a process on this machine.")
        job.expect_new_worker()
        worker = Worker(
            self._command(job), _JobWatcher(job, self), startup_seconds=self.limits.startup_seconds
        )
        self._workers[job.id] = worker
        try:
            exit_ = await worker.run()
        finally:
            if job.workers:
                job.scaled(0, "The worker is gone.")
        self._ended(job, exit_)

    def _ended(self, job: LocalJob, exit_: Exit) -> None:
        if job.state == State.JOB_STATE_CANCELLING:
            self._move(job, State.JOB_STATE_CANCELLED, f"The job is cancelled; worker: {exit_}.")
        elif job.doom:
            self._fail(job, job.doom)
        elif self._closing and (job.state in _BEFORE_DRAIN or not exit_.is_clean):
            job.tell(f"The server is stopping; worker: {exit_}.")
        elif job.proto.replaced_by_job_id:
            text = f"The job is replaced by {job.proto.replaced_by_job_id}; worker: {exit_}."
            importance = Importance.JOB_MESSAGE_BASIC if exit_.is_clean else Importance.JOB_MESSAGE_WARNING
            self._move(job, State.JOB_STATE_UPDATED, text, importance)
        elif not exit_.is_clean:
            lines = "\n".join(exit_.last_lines) or "(it logged nothing)"
            self._fail(job, f"The worker ended with {exit_}. The last lines of its log:\n{lines}")
        elif job.state == State.JOB_STATE_DRAINING:
            self._move(job, State.JOB_STATE_DRAINED, "The job is drained.")
        else:
            self._move(job, State.JOB_STATE_DONE, "The worker finished by itself.")

    def said_graph(self, job: LocalJob, transforms: Sequence[str]) -> None:
        """The job's worker tells its steps: those of a replacement must fit what they take over."""
        job.said_graph(transforms)
        old = to_be_replaced(job, self.jobs)
        if old and (reason := incompatibility(old, job)):
            self._break_off(job, reason)

    def said_running(self, job: LocalJob) -> None:
        """The job's worker works; the job that it replaces may end now."""
        if job.state != State.JOB_STATE_PENDING or job.doom:
            return
        job.scaled(1, "The job has 1 worker, a process on this machine.")
        self._move(job, State.JOB_STATE_RUNNING, "Workers have started successfully.")
        if old := to_be_replaced(job, self.jobs):
            old.proto.replaced_by_job_id = job.id
            old.tell(f"The job is being replaced by {job.id}: the worker stops reading.")
            self._save(old)
            self._stop_worker(old, signal.SIGTERM, self.limits.replace_grace_seconds)

    def _break_off(self, job: LocalJob, reason: str) -> None:
        job.doom = reason
        if worker := self._workers.get(job.id):
            worker.kill(reason)

    def _fail(self, job: LocalJob, reason: str) -> None:
        self._move(
            job, State.JOB_STATE_FAILED, f"Workflow failed. Causes: {reason}", Importance.JOB_MESSAGE_ERROR
        )

    def _move(
        self, job: LocalJob, state: State, text: str, importance: int = Importance.JOB_MESSAGE_BASIC
    ) -> None:
        job.move(state, text, importance)
        self._save(job)
        is_ending = state in (State.JOB_STATE_DRAINING, State.JOB_STATE_CANCELLING) or not job.is_active
        if is_ending and (replacement := pending_replacement(job, self.jobs.values())):
            self._break_off(
                replacement, f"The job {job.id}, which was to be updated, is in state {state.name}."
            )

    def _stop_worker(self, job: LocalJob, number: signal.Signals, grace_seconds: float | None = None) -> None:
        if worker := self._workers.get(job.id):
            worker.stop(number, grace_seconds)

    def _save(self, job: LocalJob) -> None:
        """Stores the job; where the disk refuses, the flusher tries again."""
        try:
            self._store.save(job)
        except OSError:
            job.changed = True
            log.exception("Job %s is not stored", job.id)

    def _prune(self) -> None:
        """Forgets the oldest finished jobs beyond the bound."""
        finished = [job for job in self.jobs.values() if not job.is_active]
        for job in finished:
            job.forget_details()
        for job in finished[: max(0, len(finished) - self.limits.finished_jobs)]:
            del self.jobs[job.id]
            self._store.delete(job)

    async def _flush(self) -> None:
        """Stores messages and metrics now and then; states are stored where they change."""
        while True:
            await asyncio.sleep(self.limits.flush_seconds)
            for job in list(self.jobs.values()):
                if job.changed:
                    self._save(job)


@dataclass(frozen=True, slots=True)
class _JobWatcher:
    """Takes what a worker says into its job."""

    job: LocalJob
    fleet: Fleet

    def said_state(self, state: str) -> None:
        if state == "RUNNING":
            self.fleet.said_running(self.job)
        else:
            self.job.tell(f"Worker: {state}", Importance.JOB_MESSAGE_DETAILED)

    def said_graph(self, transforms: Sequence[str]) -> None:
        self.fleet.said_graph(self.job, transforms)

    def said_counters(self, counters: Sequence[Counter]) -> None:
        self.job.said_counters(counters)

    def said_line(self, text: str, level: Level) -> None:
        self.job.said_line(text, level)
