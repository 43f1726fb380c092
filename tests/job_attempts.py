"""The attempts of a job: what an update asks for, and when one of them stands for the job and works."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.job_control import UpdateRequest
from service.job_state import WAITING_STATES
from tests.job_world import TEMPLATE, World

# Each of them waits for processes. On PostgreSQL they run with `-m soak`.
ON_EACH_DATABASE = pytest.mark.parametrize(
    "create_database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)], indirect=True
)

STRANGER = "somebody-else"


async def running(world: World, **body: Any) -> dict[str, Any]:
    return await world.until((await world.launch(**body))["id"], "RUNNING")


async def update_of(world: World, job_id: str, **parameters: str) -> UpdateRequest:
    """What an update asks for: the job as it is, with other parameters."""
    job = (await world.entry(job_id)).job
    return UpdateRequest(TEMPLATE, {**job.parameters, **parameters}, job.environment, job.attempt)


async def until_attempt(world: World, job_id: str, number: int) -> dict[str, Any]:
    """Ticks until the attempt of this number stands for the job and works, and all others have ended."""
    async with asyncio.timeout(15):
        while True:
            await world.reconciler.tick()
            job = await world.show(job_id)
            others = [each for each in job["attempts"] if each["number"] != number]
            stands = (await world.entry(job_id)).job.attempt == number
            # The old one may be seen UPDATED while the word of the new one is still that it will run.
            works = job["state"] not in WAITING_STATES
            if stands and works and all(each["ended_at"] for each in others):
                return job
            await asyncio.sleep(0.02)
