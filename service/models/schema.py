"""What the migrations say of themselves."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import String
from sqlmodel import Field, SQLModel

from service.models.columns import UtcDateTime


class AppliedMigration(SQLModel, table=True):
    """A migration that is in force; written by alembic/env.py in the migration's own transaction.

    Programs that know the revision `works_from` work on the schema that it left. `applied_by` is release,
    host and process.
    """

    __tablename__ = "schema_history"

    revision: str = Field(primary_key=True, sa_type=String(32))
    works_from: str = Field(sa_type=String(32))
    applied_at: datetime = Field(sa_type=UtcDateTime)
    applied_by: str = Field(sa_type=String(128))
