"""Builds the images' stages without Docker; tests/image_checks.py starts what was built.

Each stage gets a directory as its root, with a fresh Python environment in `usr/local`. COPY copies what
.dockerignore lets through, RUN runs in that root with the stage's variables; absolute paths are moved into
it. What comes from foreign images (Beam's boot, Google's launcher) is a placeholder.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.dockerfile import ROOT, all_instructions, is_ignored, read_ignores, read_stages, variables

RUN_SECONDS = 900
# What the machine says of its package index stays; everything else of the environment goes.
_KEPT = re.compile(
    r"(PIP_(INDEX|EXTRA_INDEX|TRUSTED|CERT|CONFIG).*|SSL_CERT.*|REQUESTS_CA.*|HTTPS?_PROXY|NO_PROXY|HOME)"
)


class Builder:
    """Builds stages under `directory`, those that others copy from first."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stages = read_stages()
        self._ignores = read_ignores()
        self._built: set[str] = set()

    def root(self, name: str) -> Path:
        return self.directory / name

    def build(self, name: str) -> None:
        if name in self._built:
            return
        self._built.add(name)
        instructions = all_instructions(self.stages, name)
        root = self.root(name)
        say(f"stage {name}")
        base = self.stages[name].base
        begun = 0
        if base in self._built:  # a Python environment cannot be copied: the stage goes on in the root
            root.symlink_to(self.root(base))
            begun = len(all_instructions(self.stages, base))
        else:
            subprocess.run([sys.executable, "-m", "venv", root / "usr" / "local"], check=True, timeout=120)
        place = "/"
        for number, (word, rest) in list(enumerate(instructions))[begun:]:
            say(f"{word} {rest}")
            if word == "WORKDIR":
                place = rest
                self.inside(root, place).mkdir(parents=True, exist_ok=True)
            elif word == "COPY":
                self._copy(root, place, rest)
            elif word == "RUN":
                environment = self.environment(name, instructions[:number])
                command = re.sub(r"(?<=[\s=])/(?=[a-z])", f"{root}/", rest)
                where = self.inside(root, place)
                subprocess.run(
                    ["/bin/sh", "-euc", command], cwd=where, env=environment, check=True, timeout=RUN_SECONDS
                )
            else:
                assert word in {"ENV", "ENTRYPOINT", "CMD", "USER", "EXPOSE", "HEALTHCHECK"}, word

    def inside(self, root: Path, path: str, place: str = "/") -> Path:
        return root / str(Path(place) / path).lstrip("/")

    def environment(self, name: str, instructions: list[tuple[str, str]]) -> dict[str, str]:
        root = self.root(name)
        before = {"PATH": f"{root}/usr/local/bin:/usr/bin:/bin", "PIP_QUIET": "1"}
        own = {
            key: (f"{root}{value}" if value.startswith("/") else value).replace("$PATH", before["PATH"])
            for key, value in variables(instructions).items()
        }
        kept = {key: value for key, value in os.environ.items() if _KEPT.fullmatch(key.upper())}
        return kept | before | own

    def _copy(self, root: Path, place: str, rest: str) -> None:
        words = rest.split()
        flags = [word for word in words if word.startswith("--")]
        *sources, target = (word for word in words if not word.startswith("--"))
        destination = self.inside(root, target, place)
        if not flags:
            for source in sources:
                self._copy_from_context(source, destination / source if target == "./" else destination)
            return
        (stage,) = (flag.removeprefix("--from=") for flag in flags)
        (source,) = sources
        if "python" in self._bases(stage):
            self.build(stage)
            shutil.copytree(self.inside(self.root(stage), source), destination, symlinks=True)
            _move_scripts(destination, self.root(stage), root)
        else:
            destination.parent.mkdir(parents=True, exist_ok=True)
            destination.write_text(f"stands for {source} of {self.stages[stage].base}\n")

    def _copy_from_context(self, source: str, destination: Path) -> None:
        files = [path for path in (ROOT / source, *(ROOT / source).rglob("*")) if path.is_file()]
        taken = [path for path in files if not is_ignored(str(path.relative_to(ROOT)), self._ignores)]
        assert taken, f"the builder sees nothing of {source}"
        for path in taken:
            target = destination / path.relative_to(ROOT / source) if path != ROOT / source else destination
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)

    def _bases(self, name: str) -> list[str]:
        found = [name]
        while found[-1] in self.stages:
            found.append(self.stages[found[-1]].base)
        return found


def _move_scripts(directory: Path, before: Path, after: Path) -> None:
    """Makes the scripts of a Python environment name its interpreter where it was copied to."""
    for path in directory.glob("bin/*"):
        if not path.is_symlink() and (text := path.read_bytes()).startswith(b"#!"):
            path.write_bytes(text.replace(bytes(before), bytes(after), 1))


def say(text: str) -> None:
    sys.stdout.write(f"-- {text}\n")
    sys.stdout.flush()
