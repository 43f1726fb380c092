"""A short random walk of job control on both databases; `python -m tests.soak.job_walk` takes a long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.job_walk import walking

STEPS = 400


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_random_walk_breaks_no_law(tmp_path: Path, database_url: str, seed: int) -> None:
    async with walking(tmp_path, database_url, seed) as walk:
        await walk.run(STEPS)
    assert walk.crashes
