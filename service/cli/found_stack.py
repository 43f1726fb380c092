"""The local stack that a command finds by itself on the data directory, and when it is left alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from service.cli.terminal import err, load_settings
from service.config import Settings, masked, sources, variable_name
from service.config.masking import MASK
from service.local.running import read_running, running_database

DATABASE = "SIGNIN_DATABASE_URL"
_GIVEN = (
    "project",
    "pubsub_emulator_host",
    "dataflow_emulator_host",
    "bigquery_emulator_host",
    "monitoring_endpoint",
)
# Each names a deployment. Region, topic, subscription and tables are names within one, and Cloud Storage's
# endpoint goes with any: a stack has no storage.
_IDENTIFYING = (*_GIVEN, "pubsub_endpoint", "dataflow_endpoint")


@dataclass(frozen=True, slots=True)
class FoundStack:
    """A running stack: its variables, the masked URL of its service's database (empty without a service).

    `against` are the variables by which the user has named another deployment; one is enough to use nothing
    of the stack, because half of each is neither.
    """

    data_dir: Path
    environment: dict[str, str]
    database: str
    against: tuple[str, ...]

    @property
    def overrides(self) -> dict[str, str]:
        """What the stack gives, by field; nothing where it is left alone."""
        if self.against:
            return {}
        given = {name: self.environment.get(variable_name(name)) for name in _GIVEN}
        return {name: value for name, value in given.items() if value is not None}

    def has(self, settings: Settings) -> bool:
        """Whether its service works on the database of the settings, as far as URLs can tell."""
        return self.database == masked(settings.async_database_url) != MASK

    def tell(self) -> None:
        """Says in a line whether the stack is used: nobody has named it."""
        place = escape(str(self.data_dir.absolute()))
        if self.against:
            said = f"[yellow]The local stack that runs on {place} is left alone: {self.why_not()}.[/]"
        else:
            project = escape(self.environment.get("SIGNIN_PROJECT", ""))
            said = f"[dim]Using the local stack that runs on {place}, project {project}.[/]"
        err.print(said, highlight=False, soft_wrap=True)

    def why_not(self) -> str:
        """Which variables speak against it, in words."""
        return f"{' and '.join(self.against)} name{'s' * (len(self.against) == 1)} another deployment"


def find_stack() -> FoundStack | None:
    """The stack that runs on the data directory of the settings; None where there is none."""
    settings = load_settings()
    environment = read_running(settings.data_dir)
    if not environment:
        return None
    read = sources.read()
    against = [
        variable_name(name)
        for name in _IDENTIFYING
        if read.origin(name) != "default" and getattr(settings, name) != environment.get(variable_name(name))
    ]
    stack = FoundStack(settings.data_dir, environment, running_database(settings.data_dir), ())
    if read.origin("database_url") != "default" and not stack.has(settings):
        against.append(DATABASE)
    return FoundStack(stack.data_dir, environment, stack.database, tuple(against))
