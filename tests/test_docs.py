"""The README says what the code says, and names nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from service.cli import app as cli
from service.config import Settings
from tests.readme_tables import README, rendered

ROOT = README.parent
TEXT = README.read_text()


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


def test_every_signin_command_in_the_readme_exists():
    known = command_paths(typer.main.get_command(cli))
    groups = ["signin local", "signin jobs"]
    for words in re.findall(r"uv run (signin(?: [a-z-]+){1,2})", TEXT):
        assert any(words.startswith(path) or path.startswith(words) for path in known + groups)


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
