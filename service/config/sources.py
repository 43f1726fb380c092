"""Where the settings come from: the environment, a `.env` file and files with secrets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource

from service.config import complaints, secret_files, variables
from service.config.settings import Settings
from service.errors import ConfigError

_SECRETS_DIR = "SIGNIN_SECRETS_DIR"


@dataclass(slots=True)
class Sources:
    """The variables as they are given, by name in capitals, and the secrets that files hold."""

    environment: Mapping[str, str]
    env_file: Mapping[str, str]
    secrets: dict[str, str] = field(default_factory=dict)
    secret_files: dict[str, Path] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    def get(self, variable: str) -> str | None:
        return self.environment.get(variable, self.env_file.get(variable))

    def place(self, variable: str) -> str:
        """Where the variable is set, in words; empty where it is not."""
        if variable in self.environment:
            return "environment"
        return ".env" if variable in self.env_file else ""

    def origin(self, name: str) -> str:
        """Where the value of a setting comes from, unless the command line gives it."""
        variable = variables.variable_name(name)
        if name in self.secret_files:
            return str(self.secret_files[name])
        return self.place(variable) or "default"


def read() -> Sources:
    """Looks everywhere; what is wrong with names and files is in `complaints`."""
    sources = Sources(
        _by_name(EnvSettingsSource(Settings).env_vars), _by_name(DotEnvSettingsSource(Settings).env_vars)
    )
    for variable, value in {**sources.env_file, **sources.environment}.items():
        if (
            variable.startswith(variables.PREFIX)
            and variable not in variables.KNOWN
            and not variables.is_foreign(variable, value)
        ):
            where = " (in .env)" if sources.place(variable) == ".env" else ""
            sources.complaints.append(f"{variables.complaint(variable)}{where}")
    for variable, name in variables.SECRETS.items():
        _read_secret(sources, variable, name)
    return sources


def load(overrides: Mapping[str, Any] | None = None) -> Settings:
    """The settings, with `overrides` (by field; None is no override) over all other sources.

    Raises ConfigError with everything that is wrong, a line each.
    """
    return combine(read(), overrides or {})


def combine(sources: Sources, overrides: Mapping[str, Any]) -> Settings:
    """The settings of what was read. Raises ConfigError as `load` does."""
    wrong = list(sources.complaints)
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        settings = Settings(**(sources.secrets | given))
    except ValidationError as error:
        wrong += complaints.sentences(error)
    if wrong:
        raise ConfigError("\n".join(wrong))
    return settings


def _by_name(values: Mapping[str, str | None]) -> dict[str, str]:
    return {name.upper(): value for name, value in values.items() if value is not None}


def _read_secret(sources: Sources, variable: str, name: str) -> None:
    by_file = variable + variables.FILE_SUFFIX
    path = sources.get(by_file)
    if path and sources.get(variable):
        sources.complaints.append(f"{variable} and {by_file} are both given: take one of them away.")
        return
    if not path:
        directory = sources.get(_SECRETS_DIR) or str(Settings.model_fields["secrets_dir"].default)
        found = None if sources.place(variable) else secret_files.find(Path(directory), variable)
        if found is None:
            return
        by_file, path = _SECRETS_DIR, str(found)
    try:
        sources.secrets[name] = secret_files.read(Path(path))
        sources.secret_files[name] = Path(path)
    except secret_files.SecretFileError as error:
        sources.complaints.append(f"{by_file} {error}.")
