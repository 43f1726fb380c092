"""Checks `deploy/terraform` against the Google provider: `python -m tests.recipes.provider DIRECTORY`.

The provider itself cannot be had where CI runs, but its bindings for Python can: they have a class for each
resource and block, whose arguments are the resource's. DIRECTORY is where they were installed.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hcl2

from tests.recipes.files import TERRAFORM

_META = {"connection", "count", "depends_on", "for_each", "lifecycle", "provider", "provisioners"}
_REFERENCE = re.compile(r"\b(data\.)?(google_\w+)\.(\w+)(?:\[[^\]]*\])?(?:\.(\w+))?")


@dataclass(frozen=True)
class Argument:
    """An argument of a resource or block; `block` is the name of its class where it is a block itself."""

    required: bool
    block: str


@dataclass(frozen=True)
class Kind:
    """What a resource or a data source may have, and what it tells."""

    blocks: dict[str, dict[str, Argument]]
    main: str
    attributes: frozenset[str]


class Provider:
    """The bindings that lie in `directory`."""

    def __init__(self, directory: Path) -> None:
        (self._package,) = directory.glob("cdktf_cdktf_provider_google")

    @functools.cache  # noqa: B019 - one provider for the whole run
    def kind(self, name: str) -> Kind | None:
        """The resource `google_x`, or `data_google_x`; None where the provider has none of the name."""
        path = self._package / name.removeprefix("google_") / "__init__.py"
        if not path.is_file():
            return None
        classes = [each for each in ast.parse(path.read_text()).body if isinstance(each, ast.ClassDef)]
        names = {each.name for each in classes}
        blocks = {each.name: dict(_arguments(each, names)) for each in classes}
        (main,) = (each.name for each in classes if _is_derived(each, "TerraformMetaArguments"))
        (resource,) = (
            each
            for each in classes
            if _is_derived(each, "TerraformResource") or _is_derived(each, "TerraformDataSource")
        )
        told = {each.name for each in resource.body if isinstance(each, ast.FunctionDef)}
        return Kind(blocks, main, frozenset(told))


def problems(provider: Provider) -> Iterator[str]:
    """What is wrong, each as a sentence."""
    for path in sorted(TERRAFORM.glob("*.tf")):
        with path.open() as file:
            found = hcl2.load(file)
        for word, prefix in (("resource", ""), ("data", "data_")):
            for each in found.get(word, ()):
                yield from _of_resource(provider, path.name, each, prefix)
        for data, kind_name, name, attribute in _REFERENCE.findall(path.read_text()):
            known = provider.kind(("data_" if data else "") + kind_name)
            if known and attribute and attribute not in known.attributes:
                yield f"{path.name}: {kind_name}.{name} has no {attribute}"


def _of_resource(provider: Provider, file: str, found: dict[str, Any], prefix: str) -> Iterator[str]:
    ((quoted, named),) = found.items()
    kind_name = quoted.strip('"')
    ((quoted_name, body),) = named.items()
    if not kind_name.startswith("google_"):
        return
    where = f"{file}: {kind_name}.{quoted_name.strip(chr(34))}"
    known = provider.kind(prefix + kind_name)
    if known is None:
        yield f"{where}: the provider has no such thing"
        return
    yield from _of_block(known, known.blocks[known.main], body, where)


def _of_block(kind: Kind, arguments: dict[str, Argument], body: dict[str, Any], where: str) -> Iterator[str]:
    given = {name: value for name, value in body.items() if not name.startswith("__")}
    for each in given.pop("dynamic", ()):
        ((quoted, dynamic),) = each.items()
        given[quoted.strip('"')] = dynamic["content"]
    for name, value in given.items():
        if name not in arguments:
            if name not in _META:
                yield f"{where} has no argument {name}"
            continue
        blocks = [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
        is_block = any("__is_block__" in each for each in blocks)
        if is_block != bool(arguments[name].block):
            yield f"{where}: {name} is {'no' if is_block else 'a'} block"
        for each in blocks if is_block and arguments[name].block else ():
            yield from _of_block(kind, kind.blocks[arguments[name].block], each, f"{where}.{name}")
    for name, argument in arguments.items():
        if argument.required and name not in given:
            yield f"{where} lacks {name}"


def _arguments(node: ast.ClassDef, names: set[str]) -> Iterator[tuple[str, Argument]]:
    made = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
    for function in made:
        for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
            if argument.arg in _META:
                continue
            assert argument.annotation
            told = ast.unparse(argument.annotation)
            block = next((word for word in re.findall(r"\w+", told) if word in names), "")
            # The bindings escape what Python or jsii has taken already.
            yield argument.arg.rstrip("_"), Argument(required=default is None, block=block)


def _is_derived(node: ast.ClassDef, base: str) -> bool:
    return any(ast.unparse(each).endswith(f".{base}") for each in node.bases)


def main(directory: str) -> None:
    found = list(problems(Provider(Path(directory))))
    for each in found:
        sys.stderr.write(f"{each}\n")
    if found:
        raise SystemExit(f"{len(found)} findings in deploy/terraform")
    sys.stdout.write("deploy/terraform has what the provider knows\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
