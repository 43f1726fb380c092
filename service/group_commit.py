"""Many callers, few transactions: while one commit is under way the next group collects."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from service.errors import DatabaseUnavailableError
from service.outbox_store import NewRow

GROUP_ROWS = 5_000


@dataclass(slots=True, eq=False)
class _Part:
    """What one caller wants committed."""

    rows: list[NewRow]
    size: int
    committed: asyncio.Future[None]


class GroupCommit:
    """Hands rows to `commit`, group after group; `rows` and `bytes` are what is on its way.

    `commit` raises DatabaseUnavailableError or commits all; each caller of a group gets the same.
    """

    def __init__(self, commit: Callable[[list[NewRow], int], Awaitable[None]]) -> None:
        self._commit = commit
        self._parts: deque[_Part] = deque()
        self._work: asyncio.Task[None] | None = None
        self.rows = 0
        self.bytes = 0

    async def add(self, rows: list[NewRow], size: int) -> None:
        """Returns when the rows are committed. A caller that is cancelled only stops waiting."""
        part = _Part(rows, size, asyncio.get_running_loop().create_future())
        self.rows += len(rows)
        self.bytes += size
        self._parts.append(part)
        if self._work is None:
            self._work = asyncio.create_task(self._run(), name="group commit")
        await part.committed

    async def _run(self) -> None:
        parts: list[_Part] = []
        try:
            while self._parts:
                parts, rows, size = self._next()
                try:
                    await self._commit(rows, size)
                except DatabaseUnavailableError as error:
                    self._settle(parts, error)
                else:
                    self._settle(parts, None)
                parts = []
        finally:
            self._work = None
            # There are some only where this task was cancelled.
            self._settle([*parts, *self._parts], DatabaseUnavailableError("The service is ending."))
            self._parts.clear()

    def _next(self) -> tuple[list[_Part], list[NewRow], int]:
        """The parts of the next group, their rows and their bytes."""
        first = self._parts.popleft()
        parts, rows, size = [first], list(first.rows), first.size
        while self._parts and len(rows) + len(self._parts[0].rows) <= GROUP_ROWS:
            part = self._parts.popleft()
            parts.append(part)
            rows += part.rows
            size += part.size
        return parts, rows, size

    def _settle(self, parts: list[_Part], error: DatabaseUnavailableError | None) -> None:
        for part in parts:
            self.rows -= len(part.rows)
            self.bytes -= part.size
            if part.committed.done():
                continue
            if error is None:
                part.committed.set_result(None)
            else:  # each its own: raising one writes its traceback into it
                part.committed.set_exception(
                    DatabaseUnavailableError(error.detail, retry_after_seconds=error.retry_after_seconds)
                )
