"""Who did what: the request of an act in a job's history, who ended a replay, what became of API keys

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None
works_from = "0003"


def upgrade() -> None:
    op.add_column("job_events", sa.Column("request_id", sa.String(128)))
    op.add_column("replays", sa.Column("request_id", sa.String(128)))
    op.add_column("replays", sa.Column("cancelled_by", sa.String(128)))
    op.create_table(
        "key_events",
        sa.Column("id", sa.String(20), primary_key=True),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
    )
    op.create_index("ix_key_events_key", "key_events", ["key_id", "id"])


def downgrade() -> None:
    op.drop_table("key_events")
    op.drop_column("replays", "cancelled_by")
    op.drop_column("replays", "request_id")
    op.drop_column("job_events", "request_id")
