"""Bytecode is kept where the environment forbids it beside the sources: tests start hundreds of processes.

Without it each of them compiles every module of Beam and of Google's clients anew, 0.5 to 1.5 s of it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".pytest_cache" / "bytecode"


def keep() -> None:
    """Lets this process and those that it starts keep bytecode in pytest's cache."""
    if sys.dont_write_bytecode and sys.pycache_prefix is None:
        CACHE.mkdir(parents=True, exist_ok=True)
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(CACHE)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(CACHE)
