"""Container specs: the files in Cloud Storage by which Dataflow launches an image as a Flex Template."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

# A tag can be moved while a job runs; workers that start later would then run other code.
_DIGEST = re.compile(r"[a-z0-9][a-z0-9._/:-]{0,254}@sha256:[0-9a-f]{64}")


class TemplateError(Exception):
    """A spec, an image or a place for a spec that is not usable; the message is for a person."""


def container_spec(metadata: Mapping[str, Any], image: str, *, max_workers: int) -> str:
    """The spec as JSON text. `metadata` is a TemplateMetadata as JSON has it, `image` names a digest.

    Workers run the image that launches them. Raises TemplateError.
    """
    require_digest(image)
    environment: dict[str, Any] = {"sdkContainerImage": image, "maxWorkers": max_workers}
    if metadata.get("streaming"):
        environment["enableStreamingEngine"] = True
    spec = {
        "image": image,
        "sdkInfo": {"language": "PYTHON"},
        "metadata": dict(metadata),
        "defaultEnvironment": environment,
    }
    content: str = _types().ContainerSpec.to_json(_parsed(json.dumps(spec)), **_AS_DATAFLOW_WRITES)
    return content + "\n"


def complaints(content: str) -> Iterator[str]:
    """What is wrong with a spec, a sentence each; nothing where Dataflow can launch it."""
    try:
        spec = _parsed(content)
    except TemplateError as error:
        yield str(error)
        return
    if not _DIGEST.fullmatch(spec.image):
        yield f"image {spec.image!r} names no digest"
    if spec.default_environment.sdk_container_image != spec.image:
        yield "defaultEnvironment.sdkContainerImage is not the image: workers would run other code"
    if not spec.default_environment.max_workers:
        yield "defaultEnvironment.maxWorkers is missing: nothing bounds the cost of a job"
    if spec.sdk_info.language != _types().SDKInfo.Language.PYTHON:
        yield "sdkInfo.language is not PYTHON"
    names = [parameter.name for parameter in spec.metadata.parameters]
    yield from (
        f"parameter {name} is there twice" for name in sorted({n for n in names if names.count(n) > 1})
    )
    for parameter in spec.metadata.parameters:
        yield from _parameter_complaints(parameter)


def require_digest(image: str) -> None:
    """Raises TemplateError for an image that is named by a tag."""
    if not _DIGEST.fullmatch(image):
        raise TemplateError(
            f"{image!r} must name a digest, as REGION-docker.pkg.dev/PROJECT/REPOSITORY/NAME@sha256:…: "
            "a tag can be moved under a running job."
        )


def version_of(release: str, image: str) -> str:
    """The version of a spec: the release and the beginning of the image's digest, so that both tell it."""
    return f"{release}-{image.rpartition('@sha256:')[2][:12]}"


def _parameter_complaints(parameter: Any) -> Iterator[str]:
    if not parameter.label or not parameter.help_text:
        yield f"parameter {parameter.name} needs a label and a helpText"
    for regex in parameter.regexes:
        try:
            fits = re.fullmatch(regex, parameter.default_value)
        except re.error as error:
            yield f"parameter {parameter.name}: {regex!r} is no regular expression: {error}"
            continue
        if parameter.default_value and not fits:
            yield f"parameter {parameter.name}: its default does not match {regex!r}"
    options = [option.value for option in parameter.enum_options]
    if options and parameter.default_value and parameter.default_value not in options:
        yield f"parameter {parameter.name}: its default is none of its options"


def _parsed(content: str) -> Any:
    from google.protobuf.json_format import ParseError

    try:
        return _types().ContainerSpec.from_json(content, ignore_unknown_fields=False)
    except (ParseError, UnicodeError) as error:
        raise TemplateError(f"not a container spec: {error}") from error


def _types() -> Any:
    from google.cloud import dataflow_v1beta3

    return dataflow_v1beta3


_AS_DATAFLOW_WRITES = {"use_integers_for_enums": False, "always_print_fields_with_no_presence": False}
