"""What the kernel says of this process, under the names that Prometheus' own libraries use."""

from __future__ import annotations

import os
import resource
import time
from functools import cache
from pathlib import Path

from service.metrics import families

_SELF = Path("/proc/self")


def cpu_seconds() -> float:
    """CPU time in user and kernel mode, of all threads."""
    return time.process_time()


def gauges() -> dict[str, float]:
    """By the name of the metric; what another system than Linux does not tell is missing."""
    try:
        pages = int((_SELF / "statm").read_bytes().split()[1])
        found: dict[str, float] = {
            families.MEMORY.name: pages * resource.getpagesize(),
            families.OPEN_FILES.name: len(os.listdir(_SELF / "fd")),  # noqa: PTH208 - a thousand paths less
            families.STARTED_AT.name: started_at(),
        }
    except OSError:
        return {}
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most != resource.RLIM_INFINITY:
        found[families.MOST_FILES.name] = most
    return found


@cache
def started_at() -> float:
    """When the process started, in seconds since 1970. Raises OSError."""
    ticks = int((_SELF / "stat").read_bytes().rpartition(b")")[2].split()[19])
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - since_boot
