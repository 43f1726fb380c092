"""What alembic runs: on the connection that service.db hands over, or on the one that the settings name."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection
from sqlmodel import SQLModel

from service import models  # noqa: F401 -- the tables register themselves
from service.config import load
from service.db import migration_connection


def run(connection: Connection) -> None:
    # One transaction around everything: SQLite can roll DDL back too, alembic only does not assume it.
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        transactional_ddl=True,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("migrations read the database: offline mode (--sql) is not offered")

handed_over = context.config.attributes.get("connection")
if handed_over is not None:
    run(handed_over)
else:
    with migration_connection(load()) as own:
        run(own)
