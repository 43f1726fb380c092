"""The Dockerfile as data: its stages, their instructions, and what of the repository the builder sees."""

from __future__ import annotations

import fnmatch
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass
class Stage:
    """`base` is an image, or the name of an earlier stage; an instruction is its word and the rest."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)


def read_stages(path: Path = ROOT / "Dockerfile") -> dict[str, Stage]:
    """The stages by name, in order, build arguments filled in."""
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if not line.strip():
            continue
        word, _, rest = line.strip().partition(" ")
        if word == "ARG" and stage is None:
            name, _, arguments[name] = rest.partition("=")
        elif word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = stages[name] = Stage(name, _filled(base, arguments))
        else:
            assert stage is not None
            stage.instructions.append((word, rest))
    return stages


def all_instructions(stages: dict[str, Stage], name: str) -> list[tuple[str, str]]:
    """The instructions of a stage behind those of the stages that it begins with."""
    stage = stages[name]
    before = all_instructions(stages, stage.base) if stage.base in stages else []
    return before + stage.instructions


def every_step(stages: dict[str, Stage], name: str) -> list[tuple[str, str]]:
    """Those and the instructions of all stages that it copies from."""
    found = all_instructions(stages, name)
    copied = {word for _, rest in found for word in rest.split() if word.startswith("--from=")}
    for each in sorted(flag.removeprefix("--from=") for flag in copied):
        found = every_step(stages, each) + found
    return found


def variables(instructions: list[tuple[str, str]]) -> dict[str, str]:
    """What ENV sets."""
    pairs = [pair for word, rest in instructions if word == "ENV" for pair in rest.split()]
    return dict(pair.split("=", 1) for pair in pairs)


def exec_form(instructions: list[tuple[str, str]], word: str) -> list[str]:
    """The last ENTRYPOINT or CMD, which have to be in the exec form."""
    found: list[str] = [json.loads(rest) for given, rest in instructions if given == word][-1]
    return found


def health_command(instructions: list[tuple[str, str]]) -> list[str]:
    """What HEALTHCHECK runs, which has to be in the exec form."""
    (rest,) = (rest for word, rest in instructions if word == "HEALTHCHECK")
    found: list[str] = json.loads(rest.partition("CMD ")[2])
    return found


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Whether .dockerignore keeps a path of the repository from the builder: the last match decides."""
    ignored = False
    parts = path.split("/")
    prefixes = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    for pattern in patterns:
        wanted = pattern.removeprefix("!")
        anywhere = wanted.startswith("**/")
        names = parts if anywhere else prefixes
        if any(fnmatch.fnmatchcase(name, wanted.removeprefix("**/")) for name in names):
            ignored = not pattern.startswith("!")
    return ignored


def read_ignores(path: Path = ROOT / ".dockerignore") -> list[str]:
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _filled(text: str, arguments: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], text)
