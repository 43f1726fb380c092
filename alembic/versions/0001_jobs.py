"""Jobs, their attempts on Dataflow and their history

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ACTIVE = sa.text("ended_at IS NULL")


def moment(name: str, *, nullable: bool = True) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(20), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("base_name", sa.String(128), nullable=False),
        sa.Column("pipeline", sa.String(64), nullable=False),
        sa.Column("project", sa.String(128), nullable=False),
        sa.Column("region", sa.String(64), nullable=False),
        sa.Column("subscription", sa.String(512)),
        sa.Column("exclusive_subscription", sa.String(512)),
        sa.Column("template_path", sa.String(1024), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("requested_state", sa.String(16), nullable=False),
        sa.Column("launch_token", sa.String(63), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("environment", sa.JSON(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("cause", sa.Text()),
        moment("created_at", nullable=False),
        moment("launch_started_at"),
        moment("observed_at"),
        moment("ended_at"),
        moment("missing_since"),
        sa.Column("missing_looks", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.UniqueConstraint("name", name="uq_jobs_name"),
        sa.CheckConstraint(
            "requested_state IN ('RUNNING', 'DRAINED', 'CANCELLED')", name="ck_jobs_requested_state"
        ),
    )
    op.create_index("ix_jobs_created", "jobs", ["created_at", "id"])
    op.create_index("ix_jobs_base_name", "jobs", ["base_name", "created_at", "id"])
    op.create_index("ix_jobs_state", "jobs", ["state", "created_at", "id"])
    op.create_index(
        "ix_jobs_active", "jobs", ["created_at", "id"], sqlite_where=ACTIVE, postgresql_where=ACTIVE
    )
    op.create_index(
        "uq_jobs_active_subscription",
        "jobs",
        ["exclusive_subscription"],
        unique=True,
        sqlite_where=ACTIVE,
        postgresql_where=ACTIVE,
    )
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.String(20), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("dataflow_job_id", sa.String(128)),
        sa.Column("state", sa.String(32), nullable=False),
        moment("created_at", nullable=False),
        moment("started_at"),
        moment("ended_at"),
        sa.Column("error", sa.Text()),
        sa.UniqueConstraint("dataflow_job_id", name="uq_attempts_dataflow_job_id"),
    )
    op.create_table(
        "job_events",
        sa.Column("job_id", sa.String(20), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("sequence", sa.Integer(), primary_key=True),
        moment("at", nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("job_events")
    op.drop_table("attempts")
    op.drop_table("jobs")
