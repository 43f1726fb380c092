"""The outbox: events that wait while Pub/Sub is away

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

WAITING = sa.text("parked_at IS NULL")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("event_id", sa.String(128), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("attributes", sa.Text(), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("claimed_until", sa.DateTime(timezone=True)),
        sa.Column("claimed_by", sa.String(64)),
        sa.Column("parked_at", sa.DateTime(timezone=True)),
        sa.Column("parked_reason", sa.Text()),
    )
    op.create_index("ix_outbox_waiting", "outbox", ["id"], sqlite_where=WAITING, postgresql_where=WAITING)
    op.create_index("ix_outbox_count", "outbox", ["parked_at", "created_at", "bytes"])


def downgrade() -> None:
    op.drop_table("outbox")
