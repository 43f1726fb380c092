"""Which release of the service this is."""

from __future__ import annotations

import functools


@functools.cache
def installed_version() -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("signin-pipeline")
    except PackageNotFoundError:
        return "unknown"
