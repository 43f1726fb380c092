"""What a migration may do while replicas of the release before work on the same tables (expand, contract).

A migration adds; what it takes away or changes was given up by an earlier release. One that is such a
contract step raises `works_from`, the oldest revision whose programs go on working. The operations are read
from alembic itself, which is given the migration to run without a database.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from alembic.migration import MigrationContext
from alembic.operations import Operations, ops
from alembic.script import ScriptDirectory

from service.db import schema

FIRST_WITH_WORKS_FROM = "0007"
# Built with a lock on `jobs` and `attempts` before there was a release. Nothing on the way of a sign-in
# touches these tables, and an index over a million jobs takes about a second.
BUILT_LOCKED = frozenset(
    {
        "ix_attempts_open",
        "ix_jobs_ended",
        "ix_jobs_pipeline",
        "ix_jobs_pipeline_state",
        "ix_jobs_base_name_state",
    }
)


@dataclass(frozen=True)
class Migration:
    """One migration file as the rules see it; `made` are the tables that it makes itself."""

    revision: str
    works_from: str | None
    operations: tuple[Any, ...]

    @property
    def made(self) -> frozenset[str]:
        return frozenset(op.table_name for op in self.operations if isinstance(op, ops.CreateTableOp))


def read(module: ModuleType) -> Migration:
    """The operations of `upgrade`, as PostgreSQL is asked for them; they become SQL text and are not done."""
    seen: list[Any] = []
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": io.StringIO()}
    )
    with Operations.context(context) as operations:
        invoke = operations.invoke

        def noted(operation: Any) -> Any:
            seen.append(operation)
            return invoke(operation)

        operations.invoke = noted  # type: ignore[method-assign]
        module.upgrade()
    return Migration(module.revision, getattr(module, "works_from", None), tuple(seen))


def migrations() -> list[Migration]:
    """All of the repository's, oldest first."""
    scripts = ScriptDirectory.from_config(schema.alembic_config())
    return [read(script.module) for script in reversed(list(scripts.walk_revisions()))]


def complaints(migration: Migration, before: Migration | None) -> list[str]:
    """What the migration may not do; `before` is the one that it follows."""
    found = list(_of_works_from(migration, before))
    promised = before.works_from if before else None
    is_contract = bool(promised and migration.works_from and migration.works_from > promised)
    for operation in migration.operations:
        said = _of_expanding(operation, migration.made)
        if said and not (is_contract and said.may_contract):
            found.append(f"{migration.revision}: {said.text}")
    return found


def _of_works_from(migration: Migration, before: Migration | None) -> Iterator[str]:
    if migration.revision < FIRST_WITH_WORKS_FROM:
        return
    if migration.works_from is None:
        yield f"{migration.revision}: it does not say `works_from`, the oldest revision whose programs go on"
    elif migration.works_from >= migration.revision:
        yield f"{migration.revision}: not even the release before goes on; take away what that does not use"
    elif before and before.works_from and migration.works_from < before.works_from:
        yield f"{migration.revision}: what the migration before took away does not come back"


@dataclass(frozen=True)
class _Said:
    text: str
    may_contract: bool = True


def _of_expanding(operation: Any, made: frozenset[str]) -> _Said | None:
    """What is wrong with an operation in an expansion; a table that the migration makes is nobody else's."""
    table = getattr(operation, "table_name", None) or getattr(operation, "source_table", None)
    name = type(operation).__name__
    said = None
    match operation:
        case _ if table in made or isinstance(operation, ops.CreateTableOp):
            pass
        case ops.AddColumnOp(column=column):
            if not column.nullable and column.server_default is None:
                said = _Said(f"{table}.{column.name} is NOT NULL without a default: programs leave it out")
        case ops.CreateIndexOp(index_name=index):
            if index not in BUILT_LOCKED and not operation.kw.get("postgresql_concurrently"):
                said = _Said(f"{index} is not built CONCURRENTLY", may_contract=False)
        case ops.DropIndexOp(index_name=index):
            said = _Said(f"{index} is dropped: queries of the release before need it")
        case ops.ExecuteSQLOp():
            said = _Said("SQL text is judged by nobody: use alembic's operations, fill columns in batches")
        case _:
            said = _Said(f"{name} changes or takes away what the release before uses")
    return said
