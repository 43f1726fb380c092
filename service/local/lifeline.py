"""Runs a module as a process that cannot outlive the process that started it.

`python -m service.local.lifeline MODULE ARGUMENTS...`, with a pipe as standard input. The parent
keeps the other end and never writes: when it ends, however it ends, the read returns and this
process goes. On Linux the kernel is asked for the same besides, for a child that is stuck in C code.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1
ORPHANED_EXIT_CODE = 75


def _exit_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(ORPHANED_EXIT_CODE)


def hold() -> None:
    """Ties this process to the one that holds the other end of its standard input."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_exit_with_parent, name="lifeline", daemon=True).start()


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit("usage: python -m service.local.lifeline MODULE ARGUMENTS...")
    hold()
    module = sys.argv[1]
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
