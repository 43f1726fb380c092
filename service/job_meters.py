"""What each active job does, as metrics: asked for in the background, so that a scrape asks nobody.

Dataflow and Cloud Monitoring are asked through the same short memory as for `GET /jobs/{id}/metrics`, by the
replica that looks after the jobs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from service.config import Settings
from service.job_metrics import MetricsView
from service.job_watch import JobWatch
from service.metrics import Metrics, families
from service.metrics.families import Family
from service.models import Job, utc_now
from service.telemetry import Telemetry
from transforms.signin_event import REASONS

log = logging.getLogger(__name__)

INTERVALS = 6  # between two looks, in those of the reconciler
MOST_JOBS = 50  # whose metrics are told: each has some twenty lines in every scrape
DEADLINE_SECONDS = 20.0
_LETTERS = "dead_letters_"
_NO_REASONS = frozenset(f"{_LETTERS}{each}" for each in ("written", "refused", "published", "unpublished"))
_Values = dict[tuple[str, ...], float]


class JobMeters:
    """The last metrics of each job of `watch`; its gauges are there while that has the jobs."""

    def __init__(self, watch: JobWatch, telemetry: Telemetry, settings: Settings, metrics: Metrics) -> None:
        self._watch = watch
        self._telemetry = telemetry
        self._seconds = INTERVALS * settings.reconcile_interval_seconds
        self._views: dict[str, tuple[Job, MetricsView]] = {}
        for family, numbers in _OF_A_JOB.items():
            metrics.gauges[family.name] = self._teller(numbers)

    async def run(self) -> None:
        """Looks at the metrics of the jobs again and again, one after the other, until it is cancelled."""
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self.look()
            except Exception:
                log.exception("the metrics of the jobs could not be looked at")

    async def look(self) -> None:
        """Asks for the metrics of each active job; of one that cannot be asked about the last ones stay."""
        found: dict[str, tuple[Job, MetricsView]] = {}
        for lineage in self._watch.jobs[:MOST_JOBS]:
            job = lineage.job
            try:
                async with asyncio.timeout(DEADLINE_SECONDS):
                    found[job.id] = job, await self._telemetry.metrics(job, lineage.attempt, utc_now())
            except Exception as error:  # of one job; the others are asked about all the same
                if not isinstance(error, TimeoutError):
                    log.exception("the metrics of the job %s could not be looked at", job.id)
                if before := self._views.get(job.id):
                    found[job.id] = job, before[1].model_copy(update={"stale": True})
        self._views = found if self._watch.is_mine else {}

    def _teller(
        self, numbers: Callable[[MetricsView], _Values]
    ) -> Callable[[], Mapping[tuple[str, ...], float]]:
        """What all jobs say to one family: the labels of each job before those of the number."""

        def told() -> _Values:
            if not self._watch.is_mine:
                return {}
            return {
                (job.id, job.name, *labels): value
                for job, view in self._views.values()
                for labels, value in numbers(view).items()
            }

        return told


def _one(value: float | None) -> _Values:
    """A number without labels of its own; what is not known is missing, never zero."""
    return {} if value is None else {(): value}


def _counted(view: MetricsView, name: str) -> _Values:
    """A counter of the job's code; where the code has told any, the others are zero."""
    return _one(None if view.counters is None else view.counters.get(name, 0))


def _messages(view: MetricsView) -> _Values:
    counters = view.counters
    if counters is None:
        return {}
    signins, letters = counters.get("signins_parsed", 0), counters.get("dead_letters", 0)
    return {("signin",): signins, ("dead_letter",): letters}


def _letters(view: MetricsView) -> _Values:
    if view.counters is None:
        return {}
    told = {
        name.removeprefix(_LETTERS): count
        for name, count in view.counters.items()
        if name.startswith(_LETTERS) and name not in _NO_REASONS
    }
    return {(reason,): count for reason, count in (dict.fromkeys(REASONS, 0) | told).items()}


_OF_A_JOB: dict[Family, Callable[[MetricsView], _Values]] = {
    families.JOB_KNOWN: lambda view: _one(int(view.observed_at is not None and not view.stale)),
    families.JOB_FRESHNESS: lambda view: _one(view.freshness_seconds),
    families.JOB_LATENCY: lambda view: _one(view.latency_seconds),
    families.JOB_VCPUS: lambda view: _one(view.vcpus),
    families.JOB_ROWS: lambda view: _counted(view, "rows_written"),
    families.JOB_MESSAGES: _messages,
    families.JOB_LETTERS: _letters,
    families.JOB_RETRIES: lambda view: _counted(view, "write_retries"),
    families.BACKLOG_MESSAGES: lambda view: _one(view.backlog.messages),
    families.BACKLOG_AGE: lambda view: _one(view.backlog.oldest_age_seconds),
}
