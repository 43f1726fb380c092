"""Whether what the service needs answers, why not, and since when."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel, Field

from service.auth import Guard
from service.breaker import Breaker, State
from service.clients import Clients
from service.config import Settings
from service.db import Database
from service.errors import ConfigError, ProblemError
from service.models import utc_now
from service.outbox import Outbox
from service.reconciler import LONGEST_PAUSE_SECONDS, Reconciler
from service.topic import meaning

CHECK_DEADLINE_SECONDS = 3.0
CACHE_SECONDS = 1.0
# After an outage of the database a replica waits so long until it tries again, and a little more.
UNLOOKED_SECONDS = 1.5 * LONGEST_PAUSE_SECONDS


class Dependency(BaseModel):
    """What one dependency said."""

    ok: bool
    cause: str | None = Field(None, description="Why it is not ok")
    latency_ms: float
    checked_at: datetime
    since: datetime = Field(
        description="The first look of this process that found it like this; it may have been so before, "
        "since there is a look only when somebody asks"
    )
    age_seconds: float = Field(description="How long ago `since` is")
    last_ok_at: datetime | None = Field(
        None,
        description="When this process last found it ok: at a look for this answer, pubsub also at a "
        "Publish call and issuer at a fetch of its keys; null where it never has",
    )


class Waiting(BaseModel):
    """What waits in the outbox, and whether events go there now."""

    breaker: State = Field(description="open: events go to the outbox; half_open: Pub/Sub is being tried")
    events: int = Field(description="Events in the outbox that wait for Pub/Sub")
    parked: int = Field(description="Events that Pub/Sub refused for good; `signin outbox status` says why")
    bytes: int
    oldest_age_seconds: float | None = Field(None, description="Age of the oldest that waits")


class Tick(BaseModel):
    """One look at all active jobs."""

    ended_at: datetime
    age_seconds: float
    seconds: float = Field(description="How long it took")
    outcome: str = Field(description="complete, incomplete (Dataflow did not tell of some jobs) or failed")


class Lease(BaseModel):
    """Which replica looks at Dataflow, and what it did last."""

    holder: str | None = Field(
        description="Host, process id and a random part; who held it last where nobody does. null for "
        "callers without a key, unless the service is open"
    )
    is_this_process: bool
    is_held: bool = Field(description="False after its end, until a replica takes it")
    renewed_at: datetime = Field(description="When the holder last began to look, or was still at it")
    age_seconds: float = Field(description="How long ago that was")
    expires_at: datetime
    last_tick: Tick | None = Field(
        None, description="The last look that came to its end, where this process did it"
    )


class Readiness:
    """Asks every dependency at once, at most once in `CACHE_SECONDS` however often it is asked."""

    def __init__(
        self,
        settings: Settings,
        clients: Clients,
        database: Database,
        outbox: Outbox,
        breaker: Breaker,
        reconciler: Reconciler,
        guard: Guard,
    ) -> None:
        self._settings = settings
        self._clients = clients
        self._database = database
        self._outbox = outbox
        self._breaker = breaker
        self._reconciler = reconciler
        self._began_at = utc_now()
        self.waiting: Waiting | None = None
        self.lease: Lease | None = None
        self.schema: str | None = None
        # Whether the schema has ever fitted this program, None while nobody could look.
        self.fitted: bool | None = None
        self._checks: dict[str, Callable[[], Awaitable[None]]] = {
            "database": self._check_database,
            "pubsub": self._check_pubsub,
            "dataflow": self._check_dataflow,
            "outbox": self._check_outbox,
            "reconciler": self._check_reconciler,
        }
        # How long ago a dependency was last well in what the service itself asked of it.
        self._good_ago: dict[str, Callable[[], float]] = {"pubsub": breaker.seconds_since_good}
        if guard.issuer:
            self._checks["issuer"] = guard.issuer.check
            self._good_ago["issuer"] = guard.issuer.age_seconds
        self._asking = asyncio.Lock()
        self._asked_at = float("-inf")
        self._answers: dict[str, Dependency] = {}

    async def dependencies(self) -> dict[str, Dependency]:
        async with self._asking:
            if time.monotonic() - self._asked_at > CACHE_SECONDS:
                names = list(self._checks)
                found = await asyncio.gather(*(self._ask(name) for name in names))
                self._answers = dict(zip(names, found, strict=True))
                self._asked_at = time.monotonic()
            return self._answers

    async def _ask(self, name: str) -> Dependency:
        started = time.perf_counter()
        cause = None
        try:
            async with asyncio.timeout(CHECK_DEADLINE_SECONDS):
                await self._checks[name]()
        except Exception as error:  # noqa: BLE001 - a check that breaks is an answer too
            cause = _cause(error)
        now, before = utc_now(), self._answers.get(name)
        is_ok = cause is None
        since = before.since if before and before.ok == is_ok else now
        return Dependency(
            ok=is_ok,
            cause=cause,
            latency_ms=round((time.perf_counter() - started) * 1000, 1),
            checked_at=now,
            since=since,
            age_seconds=age(since, now),
            last_ok_at=now if is_ok else self._last_ok_at(name, before, now),
        )

    def _last_ok_at(self, name: str, before: Dependency | None, now: datetime) -> datetime | None:
        """When a dependency that is not ok last was, as far as this process knows."""
        found = before.last_ok_at if before else None
        ago = self._good_ago[name]() if name in self._good_ago else math.inf
        if math.isinf(ago):
            return found
        answered = now - timedelta(seconds=ago)
        return max(found, answered) if found else answered

    async def _check_database(self) -> None:
        fit = await self._database.fit()
        self.schema = fit.sentence
        self.fitted = fit.works or bool(self.fitted)
        if not fit.works:
            raise ConfigError(fit.sentence)

    async def _check_outbox(self) -> None:
        self.waiting = None
        found = await self._outbox.count()
        if found.oldest_at is None and self._outbox.waiting:
            found = await self._outbox.status()
        self.waiting = Waiting(
            breaker=self._breaker.state,
            events=self._outbox.waiting,
            parked=self._outbox.parked,
            bytes=self._outbox.bytes,
            oldest_age_seconds=age(found.oldest_at, utc_now()) if found.oldest_at else None,
        )
        await self._outbox.require_writable()

    async def _check_pubsub(self) -> None:
        # The topic may be looked at, and not be published to. But where nobody has anything to try it with,
        # only new sign-ins can tell: without this look a balancer would keep them away for good.
        if self._breaker.state != "closed" and not self._breaker.is_untried:
            cause = self._breaker.cause
            because = f" ({meaning(cause)})" if meaning(cause) else ""
            raise ConfigError(f"Publish fails with {cause}{because}: sign-ins go to the outbox")
        import grpc.aio  # after the start: it costs 0.1 s

        pubsub = await self._clients.pubsub()
        try:
            await pubsub.get_topic(
                pubsub.GetTopicRequest(topic=self._settings.topic_path),
                timeout=CHECK_DEADLINE_SECONDS,
                metadata=pubsub.metadata,
            )
        except grpc.aio.AioRpcError as error:
            # roles/pubsub.publisher may publish to a topic that it may not look at.
            if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
                raise

    async def _check_dataflow(self) -> None:
        jobs = await self._clients.dataflow_jobs()
        request = {"project_id": self._settings.project, "location": self._settings.region, "page_size": 1}
        page = await jobs.list_jobs(request=request, timeout=CHECK_DEADLINE_SECONDS, retry=None)
        if page.failed_location:  # the reconciler takes no such list either
            raise ConfigError(f"Dataflow cannot list the jobs of {self._settings.region}")

    async def _check_reconciler(self) -> None:
        self.lease = None
        tick = self._reconciler.last_tick
        async with self._database.session() as session:
            row = await self._reconciler.lease.row(session)
            now = await self._reconciler.lease.now(session)
        if row is None:
            unlooked_since = self._began_at
        else:
            renewed_at = row.expires_at - timedelta(seconds=self._settings.reconcile_lease_seconds)
            is_ours = row.holder == self._reconciler.lease.holder
            self.lease = Lease(
                holder=row.holder,
                is_this_process=is_ours,
                is_held=row.expires_at > now,
                renewed_at=renewed_at,
                age_seconds=age(renewed_at, now),
                expires_at=row.expires_at,
                last_tick=Tick(**asdict(tick), age_seconds=age(tick.ended_at, now)) if tick else None,
            )
            unlooked_since = row.expires_at
        if (now - unlooked_since).total_seconds() > UNLOOKED_SECONDS:
            raise ConfigError(f"no replica has looked at the jobs for {age(unlooked_since, now):.0f} s")


def age(since: datetime, now: datetime) -> float:
    """Seconds from `since` to `now`; clocks of two machines may differ, so never less than none."""
    return round(max((now - since).total_seconds(), 0.0), 3)


def _cause(error: Exception) -> str:
    """Why a check failed, in words that may leave the process."""
    if isinstance(error, TimeoutError):
        return f"no answer within {CHECK_DEADLINE_SECONDS:g} s"
    if isinstance(error, ProblemError):
        return error.detail
    if isinstance(error, ConfigError):
        return str(error)
    code: Any = getattr(error, "grpc_status_code", None) or getattr(error, "code", None)
    code = code() if callable(code) else code
    return str(getattr(code, "name", type(error).__name__))
