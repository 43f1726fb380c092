"""What was applied when and by whom, and from which revision on programs work on it

An older program that meets a newer schema reads `works_from` of it, see service/db/schema.py. Programs from
before 0003 take a job that waits for its restart for one whose launch was lost, and may give it up as
REJECTED: they are not promised anything.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None
works_from = "0003"


def upgrade() -> None:
    op.create_table(
        "schema_history",
        sa.Column("revision", sa.String(32), primary_key=True),
        sa.Column("works_from", sa.String(32), nullable=False),
        sa.Column("applied_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("applied_by", sa.String(128), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("schema_history")
