"""Whether the schema of a database and this program fit, by what the migrations wrote down.

A program knows its own migrations and none of later releases. So each migration from 0007 on says in the
table `schema_history` from which revision on programs work on what it leaves, and an older program that
meets it can tell an expansion from a schema that it must not touch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sqlalchemy import Connection, inspect, text

if TYPE_CHECKING:
    from alembic.config import Config

HISTORY = "schema_history"


@dataclass(frozen=True)
class Fit:
    """How a schema and this program fit; `sentence` is for a person, with what is to be done."""

    kind: Literal["current", "older", "newer", "too_new"]
    sentence: str

    @property
    def works(self) -> bool:
        """Whether this program may work on the schema."""
        return self.kind in ("current", "newer")


@dataclass(frozen=True)
class Revisions:
    """The migrations of this program: all of them, and the newest."""

    known: frozenset[str]
    newest: str


def judge(applied: Collection[str], ours: Revisions, works_from: str | None) -> Fit:
    """The fit of a schema at the revisions `applied`, which serves programs from revision `works_from` on."""
    at = f"The schema is at revision {', '.join(sorted(applied))}" if applied else "There is no schema"
    if set(applied) == {ours.newest}:
        return Fit("current", f"{at}.")
    if ours.known.issuperset(applied):
        return Fit("older", f"{at}, and this program needs {ours.newest}: run `signin migrate`.")
    if works_from in ours.known:
        return Fit("newer", f"{at}, newer than this program's {ours.newest} and compatible with it.")
    return Fit(
        "too_new",
        f"{at}, which serves programs from revision {works_from or 'of its own'} on, and this one is of "
        f"{ours.newest}: start a newer release.",
    )


def look(connection: Connection) -> Fit:
    """The fit of the schema that `connection` sees."""
    ours = revisions()
    applied = applied_revisions(connection)
    works_from = None
    if applied - ours.known and inspect(connection).has_table(HISTORY):
        asked = text(f"SELECT works_from FROM {HISTORY} WHERE revision = :revision")  # noqa: S608
        works_from = connection.execute(asked, {"revision": max(applied)}).scalar()
    return judge(applied, ours, works_from)


def applied_revisions(connection: Connection) -> set[str]:
    from alembic.runtime.migration import MigrationContext

    return set(MigrationContext.configure(connection).get_current_heads())


@cache
def revisions() -> Revisions:
    """The revisions that this program knows; reads the scripts, once."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(alembic_config())
    [newest] = scripts.get_heads()
    return Revisions(frozenset(script.revision for script in scripts.walk_revisions()), newest)


def scripts_directory() -> Path:
    """Where the migrations lie: inside the installed package, or beside it in the repository."""
    package = Path(__file__).parents[1]
    installed = package / "alembic"
    return installed if installed.is_dir() else package.parent / "alembic"


def alembic_config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(scripts_directory()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
