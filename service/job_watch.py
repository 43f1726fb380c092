"""The states of the active jobs as metrics, told by the replica that looks after them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from sqlmodel.ext.asyncio.session import AsyncSession

from service import job_store
from service.config import Settings
from service.job_state import STATES, TERMINAL_STATES
from service.job_store import Lineage
from service.job_view import is_stale
from service.lease import Lease
from service.metrics import Metrics, families
from service.models import utc_now

OVERLAP = timedelta(seconds=30)  # clocks of replicas differ, and a launch is committed before its end


class JobWatch:
    """What the reconciler saw; its gauges are there while `lease` is held."""

    def __init__(
        self,
        metrics: Metrics,
        lease: Lease,
        settings: Settings,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.jobs: list[Lineage] = []
        self._metrics = metrics
        self._lease = lease
        self._settings = settings
        self._clock = clock
        self._ids: set[str] | None = None
        self._looked_at = clock()
        self._brief: set[str] = set()  # jobs that were launched lately, and have ended
        for state in TERMINAL_STATES:  # a rate needs a zero before the one
            metrics.jobs_ended.cell(state)
        metrics.tells(families.LEASE, lambda: int(self.is_mine))
        metrics.tells(families.JOBS_STALE, self._stale)
        metrics.gauges[families.JOBS.name] = self._states

    @property
    def is_mine(self) -> bool:
        return self._lease.is_held

    async def take(self, session: AsyncSession, jobs: Sequence[Lineage]) -> None:
        """Notes the active jobs of a tick, and counts those that have ended since the one before.

        Who takes the lease over counts what ended while nobody may have held it: twice rather than never.
        """
        now = self._clock()
        ids = {lineage.job.id for lineage in jobs}
        # A launch that is refused is at its end before any tick sees the job.
        brief = await job_store.ended_since_launch(session, self._looked_at - OVERLAP)
        if self._ids is None:
            unseen = self._settings.reconcile_lease_seconds + self._settings.reconcile_interval_seconds
            ended = await job_store.ended_since(session, now - timedelta(seconds=unseen))
        else:
            gone = self._ids - ids
            ended = await job_store.last_states(session, gone) if gone else []
            ended += [brief[each] for each in brief.keys() - self._ids - self._brief]
        self._looked_at, self._brief = now, set(brief)
        for state in ended:
            self._metrics.jobs_ended.add(state)
        self._ids, self.jobs = ids, list(jobs)

    def lose(self) -> None:
        """Forgets the jobs: another replica looks after them."""
        self._ids, self.jobs = None, []

    def _states(self) -> Mapping[tuple[str, ...], float]:
        if not self.is_mine:
            return {}
        counts = Counter(lineage.job.state for lineage in self.jobs)
        return {(state,): counts[state] for state in STATES - TERMINAL_STATES}

    def _stale(self) -> float | None:
        if not self.is_mine:
            return None
        now = self._clock()
        return sum(is_stale(lineage.job, self._settings, now) for lineage in self.jobs)
