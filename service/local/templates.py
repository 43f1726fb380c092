"""Flex Templates on this machine: which module a template's path means, and what parameters it takes."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

_LOCAL_PATH = re.compile(r"gs://signin-local/templates/([a-z][a-z0-9]*(?:-[a-z0-9]+)*)\.json")
_PACKAGE = "pipeline"


class TemplateNotFoundError(Exception):
    """No template lies at the path; the message is the path."""


class Violation(NamedTuple):
    """A parameter that the template does not take as it is."""

    parameter: str
    description: str


class _Option(msgspec.Struct, frozen=True):
    value: str


class _Parameter(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    is_optional: bool = False
    regexes: list[str] = []
    enum_options: list[_Option] = []


class _Metadata(msgspec.Struct, frozen=True):
    parameters: list[_Parameter] = []
    streaming: bool | None = None


class _Spec(msgspec.Struct, frozen=True):
    """A container spec, as Dataflow keeps it in a bucket, holds the metadata one floor deeper."""

    metadata: _Metadata | None = None


@dataclass(frozen=True, slots=True)
class Template:
    """A module that is run as the job, and the Flex Template metadata file that says its parameters.

    Without metadata every parameter is taken.
    """

    module: str
    metadata: Path | None = None

    def is_batch(self) -> bool:
        """Whether its jobs are batch jobs. Raises OSError or MsgspecError.

        Metadata by hand may leave out what kind they are: then they are streaming jobs.
        """
        return self.metadata is not None and _read_metadata(self.metadata).streaming is False

    def violations(self, parameters: Mapping[str, str]) -> list[Violation]:
        """What is wrong with them, in Dataflow's words. Raises OSError, re.error or MsgspecError."""
        found = [
            Violation(name, "Value holds a null byte") for name in parameters if "\0" in parameters[name]
        ]
        if self.metadata is None:
            return found
        known = {parameter.name: parameter for parameter in _read_metadata(self.metadata).parameters}
        found += [Violation(name, "Unrecognized parameter") for name in parameters if name not in known]
        for name, parameter in known.items():
            value = parameters.get(name)
            if value is None:
                if not parameter.is_optional:
                    found.append(Violation(name, "Missing required parameter"))
                continue
            found += [
                Violation(name, f"Parameter didn't match regex '{regex}'")
                for regex in parameter.regexes
                if not re.fullmatch(regex, value)
            ]
            options = [option.value for option in parameter.enum_options]
            if options and value not in options:
                found.append(Violation(name, f"Parameter must be one of {options}"))
        return found


class Templates:
    """The templates of one server: those given by path, then every module of the pipeline package.

    `gs://signin-local/templates/backfill-signin.json` means `pipeline.backfill_signin` with the metadata in
    `pipeline/backfill_signin.json`, or in `pipeline/template.json` where it has none of its own. No such
    module is imported here.
    """

    def __init__(self, given: Mapping[str, Template] | None = None) -> None:
        self._given = dict(given or {})

    def find(self, path: str) -> Template:
        """The template at a `gs://` path. Raises TemplateNotFoundError."""
        if path in self._given:
            return self._given[path]
        match = _LOCAL_PATH.fullmatch(path)
        package = importlib.util.find_spec(_PACKAGE)
        if not match or not package or not package.submodule_search_locations:
            raise TemplateNotFoundError(path)
        name = match[1].replace("-", "_")
        if importlib.util.find_spec(f"{_PACKAGE}.{name}") is None:
            raise TemplateNotFoundError(path)
        folder = Path(package.submodule_search_locations[0])
        files = (file for file in (folder / f"{name}.json", folder / "template.json") if file.is_file())
        return Template(f"{_PACKAGE}.{name}", next(files, None))


def _read_metadata(path: Path) -> _Metadata:
    content = path.read_bytes()
    spec = msgspec.json.decode(content, type=_Spec)
    if spec.metadata is None:
        return msgspec.json.decode(content, type=_Metadata)
    # As a container spec is written, what is false in it is left out.
    return msgspec.structs.replace(spec.metadata, streaming=bool(spec.metadata.streaming))
