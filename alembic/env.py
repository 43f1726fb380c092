"""What alembic runs: on the connection that service.db hands over, or on the one that the settings name."""

from __future__ import annotations

import os
import platform
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo
from sqlalchemy import Connection, inspect
from sqlmodel import SQLModel, col, delete, insert

from service import models
from service.config import load
from service.db import migration_connection


def run(connection: Connection) -> None:
    is_sqlite = connection.dialect.name == "sqlite"
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        # SQLite can roll DDL back too, alembic only does not assume it: there all is one transaction.
        transactional_ddl=True,
        # On PostgreSQL each migration lets go of its locks before the next, and may leave its transaction.
        transaction_per_migration=not is_sqlite,
        render_as_batch=is_sqlite,
        on_version_apply=noted,
    )
    with context.begin_transaction():
        context.run_migrations()


def noted(*, ctx: MigrationContext, step: MigrationInfo, **_: Any) -> None:
    """Writes down that a migration was applied, or that it was taken back."""
    connection = ctx.connection
    assert connection is not None
    [revision] = step.up_revision_ids
    if step.is_upgrade:
        context.config.attributes.get("applied", []).append(revision)
    if not inspect(connection).has_table(models.AppliedMigration.__tablename__):
        return  # the migration that makes it comes later, or has been taken back
    connection.execute(
        delete(models.AppliedMigration).where(col(models.AppliedMigration.revision) == revision)
    )
    if step.is_upgrade:
        assert step.up_revision is not None
        connection.execute(
            insert(models.AppliedMigration).values(
                revision=revision,
                works_from=getattr(step.up_revision.module, "works_from", revision),  # or it promises nothing
                applied_at=models.utc_now(),
                applied_by=f"{release()} on {platform.node()}, process {os.getpid()}"[:128],
            )
        )


def release() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("signin-pipeline")
    except PackageNotFoundError:
        return "unknown"


if context.is_offline_mode():
    raise SystemExit("migrations read the database: offline mode (--sql) is not offered")

handed_over = context.config.attributes.get("connection")
if handed_over is not None:
    run(handed_over)
else:
    with migration_connection(load()) as own:
        run(own)
