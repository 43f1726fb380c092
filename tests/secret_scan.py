"""Looks for secrets in the tracked files and in every line that history has added; 1 where it finds one.

`.ci/secrets [DIRECTORY]`, which brings detect-secrets along. Each of its rules is used, and one for our own
API keys. What looks like one and is none stands in `.ci/known_secrets`, by the SHA-1 that the scan prints.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from detect_secrets.core.scan import scan_file
from detect_secrets.settings import default_settings

KNOWN = Path(__file__).parents[1] / ".ci" / "known_secrets"
# Pinned hashes by the thousand.
LEFT_OUT = re.compile(r"requirements(-\w+)?\.txt")
OUR_KEY = re.compile(r"signin_[0-9a-f]{12}_[A-Za-z0-9_-]{43}")


def git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, errors="replace").stdout


def tracked(directory: Path) -> Iterator[Path]:
    for name in git(directory, "ls-files", "-z").split("\0"):
        if name and not LEFT_OUT.fullmatch(name) and (directory / name).is_file():
            yield directory / name


def ever_added(directory: Path, to: Path) -> Iterator[Path]:
    """Writes all lines that commits have added to a file into one of the same name, below `to`.

    Of a merge they are those of files that it has otherwise than each of its parents.
    """
    lines: dict[str, list[str]] = {}
    name, columns = "", 0  # before a file's first hunk there are none; then a column of signs for each parent
    log = ("log", "-p", "--diff-merges=combined", "--unified=0", "--format=", "HEAD")
    for line in git(directory, *log).split("\n"):
        if line.startswith("diff "):
            columns = 0
        elif line.startswith("@@"):
            columns = len(line) - len(line.lstrip("@")) - 1
        elif not columns and line.startswith("+++ "):
            name = line.removeprefix("+++ ").removeprefix("b/")
        elif "+" in line[:columns] and not LEFT_OUT.fullmatch(name):
            lines.setdefault(name, []).append(line[columns:])
    for each, added in lines.items():
        path = to / each
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(dict.fromkeys(added)), errors="replace")
        yield path


def found_in(path: Path, root: Path) -> Iterator[tuple[str, str]]:
    """What looks like a secret: its SHA-1, and a line for people that does not repeat it."""
    name = path.relative_to(root)
    for match in OUR_KEY.finditer(path.read_text(errors="replace")):
        yield hashlib.sha1(match[0].encode()).hexdigest(), f"{name}: an API key of this service"
    for secret in scan_file(str(path)):
        yield secret.secret_hash, f"{name}:{secret.line_number}: {secret.type}"


def main() -> None:
    lines = (line for line in KNOWN.read_text().splitlines() if not line.startswith("#"))
    known = {digest for digest, _reason in (line.split(maxsplit=1) for line in lines)}
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else ".").absolute()
    found: dict[str, str] = {}
    files = 0
    with default_settings(), tempfile.TemporaryDirectory() as work:
        history = Path(work)
        for root, paths in ((directory, tracked(directory)), (history, ever_added(directory, history))):
            for path in paths:
                files += 1
                for digest, words in found_in(path, root):
                    found.setdefault(digest, f"{words}{' (in history)' if root is history else ''}")
    unknown = {digest: words for digest, words in found.items() if digest not in known}
    for digest, words in sorted(unknown.items(), key=lambda item: item[1]):
        sys.stdout.write(f"{words} {digest}\n")
    sys.stdout.write(
        f"{files} files, {len(found)} that look like secrets, {len(unknown)} of them not known as harmless\n"
    )
    raise SystemExit(bool(unknown))


if __name__ == "__main__":
    main()
