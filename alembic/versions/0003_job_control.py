"""Job control: attempts that replace each other, the stop ladder, restarts, worker bounds, leases

Only adds: replicas of the version before go on working while and after it is applied. One thing they do not
understand: a job that waits for its restart looks to them like a launch whose answer was lost, and where
nothing answers to its name they may launch it early, or give it up as REJECTED where somebody else's does.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

OPEN = sa.text("ended_at IS NULL")


def moment(name: str, *, nullable: bool = True) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def word(name: str, default: str) -> sa.Column[object]:
    return sa.Column(name, sa.String(16), nullable=False, server_default=default)


def number(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.Integer(), nullable=False, server_default="0")


def flag(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false())


def job_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("pending_attempt", sa.Integer()),
        moment("drain_requested_at"),
        sa.Column("drain_deadline_seconds", sa.Integer()),
        word("on_drain_deadline", "wait"),
        moment("cancel_requested_at"),
        moment("force_cancel_requested_at"),
        word("restart_policy", "never"),
        number("restart_limit"),
        number("restarts"),
        moment("restart_at"),
        sa.Column("min_workers", sa.Integer()),
        sa.Column("max_workers", sa.Integer()),
        flag("scaling_pending"),
        flag("adopted"),
    ]


def attempt_columns() -> list[sa.Column[object]]:
    return [
        word("kind", "launch"),
        sa.Column("replaces", sa.Integer()),
        sa.Column("job_name", sa.String(1024)),
        sa.Column("launch_token", sa.String(63)),
        moment("launch_started_at"),
        sa.Column("template_path", sa.String(1024)),
        sa.Column("parameters", sa.JSON()),
        sa.Column("environment", sa.JSON()),
        sa.Column("transform_name_mappings", sa.JSON()),
        moment("missing_since"),
        number("missing_looks"),
    ]


def upgrade() -> None:
    for column in job_columns():
        op.add_column("jobs", column)
    for column in attempt_columns():
        op.add_column("attempts", column)
    op.create_index(
        "ix_attempts_open", "attempts", ["job_id", "number"], sqlite_where=OPEN, postgresql_where=OPEN
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        moment("expires_at", nullable=False),
    )


def downgrade() -> None:
    op.drop_table("leases")
    op.drop_index("ix_attempts_open", "attempts")
    for column in reversed(attempt_columns()):
        op.drop_column("attempts", column.name)
    for column in reversed(job_columns()):
        op.drop_column("jobs", column.name)
