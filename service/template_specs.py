"""What a Flex Template says of its parameters, read before a launch is tried.

The same file serves Dataflow: a container spec in a bucket, or the metadata alone in a local file.
https://cloud.google.com/dataflow/docs/guides/templates/configuring-flex-templates#metadata
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping
from urllib.parse import quote

import msgspec

from service.config import Pipeline, Settings
from service.google_rest import GoogleRest, RestError
from service.job_environment import Violation

log = logging.getLogger(__name__)

FETCH_DEADLINE_SECONDS = 5.0
KEPT_SECONDS = 300.0
FAILURE_KEPT_SECONDS = 10.0
_KEPT_SPECS = 64


class _Option(msgspec.Struct, frozen=True):
    value: str


class _Parameter(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    is_optional: bool = False
    regexes: list[str] = []
    enum_options: list[_Option] = []


class TemplateSpec(msgspec.Struct, frozen=True):
    """The parameters that a template takes, and their rules."""

    parameters: list[_Parameter] = []

    @property
    def names(self) -> set[str]:
        return {parameter.name for parameter in self.parameters}

    def violations(self, parameters: Mapping[str, str]) -> list[Violation]:
        """What Dataflow's launcher would refuse, by field of the request."""
        found = [
            Violation(f"body.parameters.{name}", "The template has no such parameter.")
            for name in parameters
            if name not in self.names
        ]
        for parameter in self.parameters:
            field, value = f"body.parameters.{parameter.name}", parameters.get(parameter.name)
            if value is None:
                if not parameter.is_optional:
                    found.append(Violation(field, "The template requires this parameter."))
                continue
            found += [
                Violation(field, f"The value does not match {regex}")
                for regex in parameter.regexes
                if not _fits(regex, value)
            ]
            options = [option.value for option in parameter.enum_options]
            if options and value not in options:
                found.append(Violation(field, f"The value is none of {', '.join(options)}."))
        return found


class _File(msgspec.Struct, frozen=True):
    """A container spec, or metadata alone: those have no image."""

    image: str | None = None
    metadata: TemplateSpec | None = None


class NoMetadataError(Exception):
    """The container spec says nothing of its parameters, as it may: any may be right."""


class TemplateSpecs:
    """The specs of templates, kept for a while."""

    def __init__(self, rest: GoogleRest, settings: Settings) -> None:
        self._rest = rest
        self._settings = settings
        self._endpoint = settings.storage_endpoint.rstrip("/")
        # Behind the local Dataflow there is no bucket, unless an emulator of one is named.
        self._has_buckets = self._endpoint.startswith("http://") or not settings.dataflow_emulator_host
        self._kept: dict[str, tuple[float, TemplateSpec | None]] = {}

    async def find(self, pipeline: Pipeline) -> TemplateSpec | None:
        """The spec; None where it cannot be read now, so that Dataflow alone is to judge."""
        place = str(pipeline.template_metadata or pipeline.template_path)
        kept = self._kept.get(place)
        if kept and time.monotonic() < kept[0]:
            return kept[1]
        spec = None
        try:
            spec = await self.read(pipeline)
        except NoMetadataError:
            log.debug("the template spec %s has no metadata: Dataflow alone judges the parameters", place)
        except (OSError, RestError, msgspec.MsgspecError) as error:
            log.warning("the template spec %s cannot be read: %s", place, error)
        if len(self._kept) >= _KEPT_SPECS:
            self._kept.clear()
        seconds = KEPT_SECONDS if spec else FAILURE_KEPT_SECONDS
        self._kept[place] = (time.monotonic() + seconds, spec)
        return spec

    async def read(self, pipeline: Pipeline) -> TemplateSpec | None:
        """The spec as it is now, None where there is no bucket, or none of ours.

        Raises NoMetadataError, OSError, RestError or MsgspecError.
        """
        if pipeline.template_metadata:
            return _read(await asyncio.to_thread(pipeline.template_metadata.read_bytes))
        if not self._has_buckets or self._settings.template_not_set(pipeline.template_path):
            return None
        return _read(await self._fetch(pipeline.template_path))

    async def _fetch(self, path: str) -> bytes:
        bucket, _, name = path.removeprefix("gs://").partition("/")
        url = f"{self._endpoint}/storage/v1/b/{quote(bucket, safe='')}/o/{quote(name, safe='')}"
        return await self._rest.get(url, {"alt": "media"}, deadline_seconds=FETCH_DEADLINE_SECONDS)


def _read(content: bytes) -> TemplateSpec:
    try:
        spec = msgspec.json.decode(content, type=_File)
        if spec.metadata is None and spec.image is not None:
            raise NoMetadataError
        return spec.metadata or msgspec.json.decode(content, type=TemplateSpec)
    except UnicodeDecodeError as error:  # msgspec's own way to say that a string is none
        raise msgspec.DecodeError("the spec is not UTF-8") from error


def _fits(regex: str, value: str) -> bool:
    try:
        return re.fullmatch(regex, value) is not None
    except re.error:  # Java's dialect, which Dataflow's launcher judges
        return True
