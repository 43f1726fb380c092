"""A short random walk of job control on both databases; `python -m tests.soak.job_walk` takes a long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.job_walk import walking


async def test_a_random_walk_breaks_no_law(tmp_path: Path, database_url: str) -> None:
    async with walking(tmp_path, database_url, seed=1) as walk:
        await walk.run(150)
    assert walk.crashes


@pytest.mark.soak
@pytest.mark.parametrize("seed", [2, 3])
async def test_a_longer_walk_breaks_no_law(tmp_path: Path, database_url: str, seed: int) -> None:
    async with walking(tmp_path, database_url, seed) as walk:
        await walk.run(1000)
