"""The rule that a migration adds, and takes away only what an earlier release gave up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from alembic import op

from tests.migration_rules import Migration, complaints, migrations, read

EARLIER = Migration("0010", "0008", ())


def judged(upgrade, *, works_from="0008", revision="0011"):
    found = read(SimpleNamespace(upgrade=upgrade, revision=revision, works_from=works_from))
    return complaints(found, EARLIER)


def test_every_migration_keeps_the_rule():
    found = migrations()
    assert [migration.revision for migration in found] == sorted(migration.revision for migration in found)
    pairs = zip(found, [None, *found], strict=False)
    assert [said for migration, before in pairs for said in complaints(migration, before)] == []


def test_a_table_a_nullable_column_and_one_with_a_default_may_be_added():
    def upgrade():
        op.create_table("colours", sa.Column("id", sa.Integer(), primary_key=True))
        op.create_index("ix_colours", "colours", ["id"])
        op.add_column("jobs", sa.Column("colour", sa.String(8)))
        op.add_column("jobs", sa.Column("shade", sa.Integer(), nullable=False, server_default="0"))
        with op.get_context().autocommit_block():
            op.create_index("ix_jobs_colour", "jobs", ["colour"], postgresql_concurrently=True)

    assert judged(upgrade) == []


TAKING_AWAY = {
    "DropColumnOp": lambda: op.drop_column("jobs", "state"),
    "DropTableOp": lambda: op.drop_table("jobs"),
    "RenameTableOp": lambda: op.rename_table("jobs", "works"),
    "AlterColumnOp": lambda: op.alter_column("jobs", "state", new_column_name="status"),
    "NOT NULL": lambda: op.add_column("jobs", sa.Column("colour", sa.String(8), nullable=False)),
    "is dropped": lambda: op.drop_index("ix_jobs_state", "jobs"),
    "CreateUniqueConstraintOp": lambda: op.create_unique_constraint("uq", "jobs", ["state"]),
    "CreateCheckConstraintOp": lambda: op.create_check_constraint("ck", "jobs", "attempt > 0"),
    "SQL text": lambda: op.execute("UPDATE jobs SET state = 'DONE'"),
}


@pytest.mark.parametrize(("said", "upgrade"), TAKING_AWAY.items(), ids=TAKING_AWAY)
def test_what_takes_away_is_refused_in_an_expansion_and_allowed_in_a_contract_step(said, upgrade):
    [complaint] = judged(upgrade)
    assert complaint.startswith("0011: ")
    assert said in complaint
    assert judged(upgrade, works_from="0009") == []


def test_a_type_may_not_change_either():
    [complaint] = judged(lambda: op.alter_column("jobs", "attempt", type_=sa.BigInteger()))
    assert "AlterColumnOp" in complaint


def test_an_index_on_a_table_that_is_in_use_is_built_concurrently_even_in_a_contract_step():
    for works_from in ("0008", "0009"):
        [complaint] = judged(lambda: op.create_index("ix", "outbox", ["bytes"]), works_from=works_from)
        assert "not built CONCURRENTLY" in complaint


@pytest.mark.parametrize(
    ("works_from", "said"), [(None, "does not say"), ("0011", "not even"), ("0007", "does not come back")]
)
def test_a_migration_says_for_whom_it_works_and_never_for_itself_alone(works_from, said):
    [complaint] = judged(lambda: None, works_from=works_from)
    assert said in complaint
