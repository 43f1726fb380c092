"""The release before the newest migration works on beside this one, as in every rolling upgrade."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from service.db import schema
from tests.replica_load import Load
from tests.replicas import Turmoil, turmoil
from tests.soak.replica_turmoil import Operator, launch, make_key

ROOT = Path(__file__).parents[1]


def git(*arguments: str) -> str:
    asked = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return asked.stdout.strip()


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The tree of the last commit that knew nothing of the newest migration."""
    [newest] = (ROOT / "alembic" / "versions").glob(f"{schema.revisions().newest}_*.py")
    commit = git("log", "-1", "--diff-filter=A", "--format=%H", "--", str(newest.relative_to(ROOT)))
    if not commit or not git("rev-parse", "--verify", f"{commit}^"):
        pytest.skip("there is no history here: the older release is taken from it")
    tree = tmp_path / "older"
    tree.mkdir()
    packed = subprocess.run(
        ["git", "-C", str(ROOT), "archive", f"{commit}^", "service", "transforms", "alembic"],
        capture_output=True,
        check=True,
    )
    subprocess.run(["tar", "-x", "-C", str(tree)], input=packed.stdout, check=True)
    assert not (tree / "alembic" / "versions" / newest.name).exists()
    return tree


async def revisions(world: Turmoil) -> set[str]:
    return {revision for (revision,) in await world.query("SELECT version_num FROM alembic_version")}


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_sign_ins_and_jobs_go_on_while_this_release_takes_the_place_of_the_one_before(
    tmp_path, postgres, older
):
    database_url = postgres.create(migrated=False)
    async with turmoil(tmp_path, database_url, older) as world:
        world.schema_changes = 2  # by the older release at first, and by this one
        former = list(world.replicas)
        newest = schema.revisions().newest
        assert newest not in await revisions(world)
        sender = await make_key(database_url, "sender", "events:write")
        operating = await make_key(database_url, "operator", "jobs:write")
        operator = Operator(world.balancer.port, operating.text)
        try:
            async with Load(world.balancer.port, sender.text) as load:
                begun_before = await launch(world, operator, "begun-before")
                await load.more(200)
                await world.start()
                assert await revisions(world) == {newest}
                # Both releases work on the newer schema, and either may look at all jobs.
                begun_between = await launch(world, operator, "begun-between")
                await operator.ask(f"/jobs/{begun_before}/drain", "drain-before")
                await load.more(200)
                await operator.until(begun_before, "DRAINED")
                for name in former:
                    await world.stop_gently(name)
                await world.holder()
                await load.more(200)
                await operator.ask(f"/jobs/{begun_between}/drain", "drain-between")
                await operator.until(begun_between, "DRAINED")
            await world.judge(load)
        finally:
            await operator.close()
        verdict = world.verdict
        assert verdict.complaints == []
        assert verdict.failed_while_stopping == 0
        assert verdict.arrived == verdict.answered > 500
        assert verdict.statuses["202"] == verdict.answered
