"""From when a drain's deadline counts, where it was given while the drain lasted

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None
works_from = "0003"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("drain_deadline_from", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("jobs", "drain_deadline_from")
