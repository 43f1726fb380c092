"""A container without Docker: a read-only root, one writable directory, another user, no capabilities.

Linux namespaces make it, through `unshare`, `pivot_root` and `setpriv` of util-linux. The root is made of
bind mounts: the system's directories and those that are asked for, each at its own path and read-only.
`/tmp`, `/var/tmp` and `/dev/shm` are there and take nothing. The program is process 1, as it is in a
container, and shares the network with its caller.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

UID = 10001
START_SECONDS = 20.0
_SYSTEM = ("/bin", "/etc", "/lib", "/lib64", "/sbin", "/usr")
# $1 is a directory for the root, $2 the writable one, $3 the user; then what is seen, `--`, the program.
_ENTER = r"""
set -eu
PATH=$PATH:/usr/sbin:/sbin
root=$1 data=$2 user=$3
shift 3
mount -t tmpfs -o mode=755 container "$root"
while [ "$1" != -- ]; do
  if [ -L "$1" ]; then
    cp -P "$1" "$root$1"
  else
    mkdir -p "$root$1"
    mount --bind "$1" "$root$1"
    mount -o remount,bind,ro "$root$1" || mount -o remount,bind,ro,nosuid,nodev "$root$1"
  fi
  shift
done
shift
mkdir -p "$root/dev/shm" "$root/proc" "$root/tmp" "$root/var/tmp" "$root/before" "$root$data"
for device in null zero full random urandom; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t proc proc "$root/proc"
mount --bind "$data" "$root$data"
mount -o remount,bind,ro "$root"
cd "$root"
pivot_root . before
umount -l /before
cd "$data"
"""
_DROP = '--no-new-privs --bounding-set=-all --inh-caps=-all -- "$@"\n'
_AS_ROOT = f'exec setpriv --reuid "$user" --regid "$user" --clear-groups {_DROP}'
_AS_USER = f'exec unshare --user --map-user="$user" --map-group="$user" setpriv {_DROP}'


@functools.cache
def why_not() -> str:
    """Why this machine cannot make a container; empty where it can."""
    if sys.platform != "linux":
        return "namespaces are Linux's"
    for program in ("unshare", "pivot_root", "setpriv"):
        if not shutil.which(program):
            return f"{program} of util-linux is not installed"
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            _command(["/bin/true"], Path(directory), Path(directory), ()),
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
    return f"neither root nor user namespaces are to be had: {done.stderr.strip()}" if done.returncode else ""


@contextmanager
def started(
    command: Sequence[str | Path], data: Path, visible: Iterable[Path], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """The program in its container, its output in pipes; killed at the end of the block if it still runs.

    `data` is its working directory and all that it can write to; it is given to the user UID.
    """
    if os.geteuid() == 0:
        os.chown(data, UID, UID)
    with (
        tempfile.TemporaryDirectory() as root,
        subprocess.Popen(
            _command(command, Path(root), data, visible),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def send(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Sends a signal to process 1 of the container, as `docker stop` does."""
    os.kill(first_process(process), number)


def first_process(process: subprocess.Popen[str]) -> int:
    """The number, outside, of the container's process 1. Raises TimeoutError where it does not start."""
    deadline = time.monotonic() + START_SECONDS
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while time.monotonic() < deadline and process.poll() is None:
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.01)
    raise TimeoutError("the container did not start")


def _command(
    command: Sequence[str | Path], root: Path, data: Path, visible: Iterable[Path]
) -> list[str | Path]:
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    shown = [path for path in _SYSTEM if Path(path).exists()]
    return [
        *("unshare", *own, "--mount", "--pid", "--fork", "--kill-child"),
        *("/bin/sh", "-c", _ENTER + (_AS_USER if own else _AS_ROOT), "container"),
        *(root, data, str(UID), *shown, *dict.fromkeys(path.resolve() for path in visible), "--"),
        *command,
    ]
