"""The local Dataflow's workers by hand: they are not processes but move when somebody says so."""

from __future__ import annotations

import asyncio
from typing import Any

from service.local.dataflow.fleet import Fleet
from service.local.dataflow.job import LocalJob, State
from service.local.supervisor import Exit


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


async def settled() -> None:
    """Lets the tasks of the local server do what they are about to."""
    for _ in range(5):
        await asyncio.sleep(0)
