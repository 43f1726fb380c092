"""Checks the licence of every package that is installed here, tools included: `python -m tests.licences`.

An expression is fine if what it joins with AND is fine, and one of what it joins with OR.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys

FINE = {
    *("MIT", "MIT-0", "MIT-CMU", "MIT License", "ISC", "ISC License (ISCL)", "0BSD", "Zlib", "CC0-1.0"),
    *("BSD-2-Clause", "BSD-3-Clause", "BSD License", "3-Clause BSD License"),
    *("Apache-2.0", "Apache 2.0", "Apache Software License"),
    *("PSF-2.0", "Python Software Foundation License", "CNRI-Python"),
    # Of these we change nothing, and they stand beside our code as packages of their own.
    *("MPL-2.0", "Mozilla Public License 2.0 (MPL 2.0)"),  # certifi, pathspec, orjson, hypothesis
    "LGPL-3.0-only",  # psycopg
}
# Their metadata says nothing; this is what the licence file says that they carry.
BY_ITS_FILE = {"dumb-init": "MIT", "promql-parser": "MIT"}
OURS = "signin-pipeline"


def licence(package: importlib.metadata.Distribution) -> str:
    """What a package says of itself: an SPDX expression, else its classifiers, else free text."""
    facts = package.metadata
    if stated := BY_ITS_FILE.get(facts["Name"]):
        return stated
    if expression := facts.get("License-Expression"):
        return expression
    classified = [each for each in facts.get_all("Classifier", []) if each.startswith("License :: ")]
    if classified:
        return " OR ".join(each.rpartition(" :: ")[2] for each in classified)
    return (facts.get("License") or "").partition("\n")[0]


def is_fine(expression: str) -> bool:
    """Whether we can ship with it; parts in parentheses are alternatives."""
    if expression in FINE:
        return True
    inner = re.sub(r"\(([^()]*)\)", lambda found: "MIT" if is_fine(found[1]) else "none", expression)
    return all(any(each in FINE for each in part.split(" OR ")) for part in inner.split(" AND "))


def main() -> None:
    found = {each.metadata["Name"]: licence(each) for each in importlib.metadata.distributions()}
    wrong = {name: each for name, each in found.items() if name != OURS and not is_fine(each)}
    for name, each in sorted(wrong.items()):
        sys.stdout.write(f"{name}: {each or 'says nothing of its licence'}\n")
    sys.stdout.write(f"the licences of {len(found)} packages, {len(wrong)} that are not on the list\n")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
