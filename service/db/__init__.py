"""The metadata database: its connections, its schema, and how that is changed while replicas work on it."""

from service.db.database import Database
from service.db.engines import new_file
from service.db.migrations import migrate, migration_connection, unmigrate

__all__ = ["Database", "migrate", "migration_connection", "new_file", "unmigrate"]
