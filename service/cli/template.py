"""`signin template`: the Flex Template specs by which Dataflow launches our image."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli import template_store
from service.cli.jobs import named
from service.cli.terminal import err, fail, load_settings
from service.flex_templates import TemplateError, complaints, container_spec, require_digest, version_of
from service.local.templates import Template, TemplateNotFoundError, Templates

app = typer.Typer(no_args_is_help=True, help="Build, publish and check Flex Template specs.")

Name = Annotated[str, typer.Argument(help="user-signin or backfill-signin")]
Image = Annotated[
    str, typer.Option(help="The pushed image of the target `template`, with its @sha256: digest")
]


@app.command()
def build(
    name: Name,
    image: Image,
    output: Annotated[str, typer.Option(help="File to write; - is standard output")] = "-",
) -> None:
    """Write the spec of a pipeline: the image, what it runs with, and the parameters that it takes."""
    with told_as_sentences():
        spec = spec_of(name, image)
        if output == "-":
            typer.echo(spec, nl=False)
        else:
            Path(output).write_text(spec, encoding="utf-8")


@app.command()
def publish(
    name: Name,
    image: Image,
    to: Annotated[str, typer.Option(help="gs://BUCKET/PREFIX, or a directory")],
    release: Annotated[
        str | None, typer.Option("--version", help="Name of the version; by default release and digest")
    ] = None,
) -> None:
    """Put the spec under a path of its own for each version, and print that path for SIGNIN_TEMPLATE_PATH.

    A path that was published is never overwritten; the same spec again is well.
    """
    with told_as_sentences():
        spec = spec_of(name, image)
        folder = release or version_of(version("signin-pipeline"), image)
        scheme = "gs://" if to.startswith("gs://") else ""
        path = f"{scheme}{to.removeprefix(scheme).rstrip('/')}/{folder}/{name}.json"
        created = template_store.publish(path, spec.encode())
        err.print("published" if created else "it was published already", highlight=False)
        typer.echo(path)


@app.command()
def validate(
    path: Annotated[str, typer.Argument(help="A spec: a file, or gs://BUCKET/NAME")],
    parameter: Annotated[
        list[str] | None, typer.Option(help="A parameter that it shall take, as name=value")
    ] = None,
) -> None:
    """Check a spec, and the parameters of a launch against it, before Dataflow does."""
    parameters = named(parameter, "--parameter")
    with told_as_sentences():
        content = template_store.read(path)
        found = list(complaints(content.decode("utf-8", "replace")))
        if not found and parameters:
            found = parameter_complaints(content, parameters)
    for sentence in found:
        err.print(sentence, markup=False, highlight=False, soft_wrap=True)
    if found:
        fail(f"{path} is not usable" + (" with these parameters" if parameters else ""))
    err.print(f"{path} is usable", highlight=False)


def spec_of(name: str, image: str) -> str:
    """The spec of a pipeline of this release. Raises TemplateError."""
    require_digest(image)
    try:
        template = Templates().find(f"gs://signin-local/templates/{name}.json")
    except TemplateNotFoundError as error:
        raise TemplateError(f"There is no pipeline {name!r}.") from error
    assert template.metadata is not None
    metadata: dict[str, Any] = json.loads(template.metadata.read_text(encoding="utf-8"))
    return container_spec(metadata, image, max_workers=load_settings().max_workers)


def parameter_complaints(content: bytes, parameters: Mapping[str, str]) -> list[str]:
    """What the spec has against the parameters, in Dataflow's words."""
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        file.write(content)
        file.flush()
        violations = Template("", Path(file.name)).violations(parameters)
    return [f"{violation.parameter}: {violation.description}" for violation in violations]


@contextmanager
def told_as_sentences() -> Iterator[None]:
    try:
        yield
    except TemplateError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
