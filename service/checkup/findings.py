"""What a check finds, and the run of many at once, each within its deadline."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from service.errors import ConfigError, ProblemError

log = logging.getLogger(__name__)

Status = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One connection: how it is, and the commands that mend it where it is not as it should be."""

    check: str
    target: str
    status: Status
    detail: str
    remedies: tuple[str, ...]
    seconds: float


class Trouble(Exception):  # noqa: N818 -- not of the program: of what it looks at
    """What is wrong in a sentence, and what to do about it.

    `is_fatal` says whether something will not work; otherwise it is a warning.
    """

    def __init__(self, detail: str, *remedies: str, is_fatal: bool = True) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedies = remedies
        self.is_fatal = is_fatal


class NotAsked(Exception):  # noqa: N818 -- no error: there is nothing to check
    """Why there is nothing to check."""


@dataclass(frozen=True, slots=True)
class Check:
    """`look` returns a sentence about what it found, or raises Trouble or NotAsked."""

    name: str
    target: str
    look: Callable[[], Awaitable[str]]


async def run(checks: Sequence[Check], deadline_seconds: float) -> list[Finding]:
    """All of them at once; the findings in the order of the checks."""
    return list(await asyncio.gather(*(_found(check, deadline_seconds) for check in checks)))


async def _found(check: Check, deadline_seconds: float) -> Finding:
    started = time.perf_counter()
    status: Status = "ok"
    remedies: tuple[str, ...] = ()
    try:
        async with asyncio.timeout(deadline_seconds):
            detail = await check.look()
    except NotAsked as reason:
        status, detail = "skipped", str(reason)
    except Trouble as trouble:
        status = "failed" if trouble.is_fatal else "warning"
        detail, remedies = trouble.detail, trouble.remedies
    except TimeoutError:
        status, detail = "failed", f"There was no answer within {deadline_seconds:g} s."
        remedies = ("Look whether a firewall, a proxy or a wrong address is in between.",)
    except ProblemError as error:
        status, detail = "failed", error.detail
    except ConfigError as error:
        status, detail = "failed", str(error)
    except Exception as error:  # a check that breaks must not hide the other findings
        log.debug("the check %s broke", check.name, exc_info=error)
        status, detail = "failed", f"The check broke with {type(error).__name__}."
    return Finding(
        check.name, check.target, status, detail, remedies, round(time.perf_counter() - started, 3)
    )
