"""The README says what the code says, and names nothing that is not there."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from service.cli import app as cli
from service.config import Settings
from tests.readme_tables import README, rendered

ROOT = README.parent
TEXT = README.read_text()
COMMAND = re.compile(r"(?:uv run|exec stack) signin ")
SOURCE_NAME = re.compile(r"(?<![\w/.-])(?:service|pipeline|transforms|tests|alembic)/[\w/]+\.py\b")


def command_paths(command: Any, prefix: str = "signin") -> list[str]:
    # Typer's groups are of a click that it carries within itself.
    commands = getattr(command, "commands", None)
    if commands is None:
        return [prefix]
    return [path for name, sub in commands.items() for path in command_paths(sub, f"{prefix} {name}")]


def test_the_commands_are_found():
    assert {"signin up", "signin jobs launch", "signin local faults"} <= set(
        command_paths(typer.main.get_command(cli))
    )


def test_the_tables_are_those_of_the_code():
    assert rendered(TEXT) == TEXT, "run: uv run python -m tests.readme_tables"


@pytest.mark.parametrize("path", command_paths(typer.main.get_command(cli)))
def test_every_command_is_named_in_the_readme(path):
    assert path in TEXT


def test_every_route_is_named_in_the_readme():
    from service.app import create_app

    paths = create_app(Settings(_env_file=None)).openapi()["paths"]
    for path, operations in paths.items():
        for method in operations:
            readable = path.replace("{job_id}", "{id}")
            assert f"{method.upper()} {readable}" in TEXT


def shell_commands(text: str) -> list[list[str]]:
    """The words behind `signin` of each command in blocks of code, and of each that stands in a sentence.

    Those of a block end where a pipe, another command or a comment begins.
    """
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    ends = r" [#|>]|[);]| && "
    found = [re.split(ends, line.split("signin ", 1)[1])[0] for line in lines if COMMAND.search(line)]
    found += [" ".join(words.split()) for words in re.findall(r"`signin ([^`]+)`", text)]
    return [shlex.split(words) for words in found]


def parse(words: list[str]) -> None:
    """Raises where there is no such command, or it does not take these options and arguments."""
    command: Any = typer.main.get_command(cli)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        command, words = command.commands[words[0]], words[1:]
    assert not words or not hasattr(command, "commands") or command.invoke_without_command
    options = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    for word in words:
        assert not word.startswith("--") or word.partition("=")[0] in options, word


COMMANDS = shell_commands(TEXT)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_signin_command_in_the_readme_exists_and_takes_its_options(words):
    parse(words)


def test_a_command_or_an_option_that_does_not_exist_is_noticed():
    assert len(COMMANDS) > 70
    for words in ("jobs nonsense", "jobs launch --nonsense", "emit --nonsense 1", "tail --jsn", "local x"):
        with pytest.raises((AssertionError, KeyError)):
            parse(words.split())


def test_every_path_in_the_map_of_the_code_exists():
    parts = TEXT.split("## Map of the code")[1].split("```")[1]
    folder = ROOT
    for line in parts.strip().splitlines():
        if not line.startswith(" "):
            folder = ROOT / line.split()[0]
            assert folder.is_dir()
        else:
            for name in re.findall(r"[a-z_]+(?:\.py|/)(?= |$)", line.split("   ")[0] + " "):
                assert (folder / name).exists(), f"{folder.name}/{name}"


def test_every_source_file_that_is_named_outside_of_the_sources_exists():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    named = {
        (path, name)
        for path in listed.splitlines()
        if not path.endswith(".py") and path != "CHANGELOG.md"  # which tells of what was
        for name in SOURCE_NAME.findall((ROOT / path).read_text(errors="replace"))
    }
    assert named
    assert {each for each in named if not (ROOT / each[1]).is_file()} == set()


def test_every_link_of_the_readme_to_a_file_leads_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", TEXT):
        assert (ROOT / target).exists()


def test_no_source_file_is_longer_than_300_lines():
    folders = ("service", "pipeline", "transforms", "alembic")
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for folder in folders
        for path in Path(ROOT / folder).rglob("*.py")
    }
    assert {path: length for path, length in lengths.items() if length > 300} == {}
