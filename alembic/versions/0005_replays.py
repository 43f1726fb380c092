"""Replays of dead letters, and which letters were replayed

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ACTIVE = sa.text("ended_at IS NULL")


def moment(name: str, *, nullable: bool = True) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def number(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.Integer(), nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "replays",
        sa.Column("id", sa.String(20), primary_key=True),
        number("slot"),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("again", sa.Boolean(), nullable=False),
        sa.Column("filters", sa.JSON(), nullable=False),
        number("most_letters"),
        number("letters", nullable=True),
        number("read"),
        number("replayed"),
        number("repeated"),
        number("unreplayable"),
        moment("position_at"),
        number("position_skip"),
        sa.Column("cause", sa.Text()),
        sa.Column("actor", sa.String(128), nullable=False),
        moment("created_at", nullable=False),
        moment("started_at"),
        moment("ended_at"),
        moment("claimed_until"),
        sa.Column("claimed_by", sa.String(64)),
    )
    op.create_index(
        "uq_replays_active", "replays", ["slot"], unique=True, sqlite_where=ACTIVE, postgresql_where=ACTIVE
    )
    op.create_index("ix_replays_created", "replays", ["created_at", "id"])
    op.create_table(
        "replayed_letters",
        sa.Column("letter_key", sa.String(32), primary_key=True),
        sa.Column("replay_id", sa.String(20), primary_key=True),
        moment("at", nullable=False),
    )


def downgrade() -> None:
    op.drop_table("replayed_letters")
    op.drop_table("replays")
