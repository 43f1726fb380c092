"""Answers kept under their Idempotency-Key, and indices for every filter of the list of jobs

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ENDED = sa.text("ended_at IS NOT NULL")
INDICES = {
    "ix_jobs_pipeline": ["pipeline", "created_at", "id"],
    "ix_jobs_pipeline_state": ["pipeline", "state", "created_at", "id"],
    "ix_jobs_base_name_state": ["base_name", "state", "created_at", "id"],
}


def upgrade() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("scope", sa.String(128), primary_key=True),
        sa.Column("key", sa.String(200), primary_key=True),
        sa.Column("request_hash", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(20)),
        sa.Column("status", sa.Integer()),
        sa.Column("media_type", sa.String(128)),
        sa.Column("location", sa.String(256)),
        sa.Column("body", sa.Text()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("locked_until", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_idempotency_keys_created", "idempotency_keys", ["created_at"])
    op.create_index("ix_jobs_ended", "jobs", ["created_at", "id"], sqlite_where=ENDED, postgresql_where=ENDED)
    for name, columns in INDICES.items():
        op.create_index(name, "jobs", columns)


def downgrade() -> None:
    for name in reversed(INDICES):
        op.drop_index(name, "jobs")
    op.drop_index("ix_jobs_ended", "jobs")
    op.drop_table("idempotency_keys")
