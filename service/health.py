"""`/healthz`, `/readyz` and `/version`: is the process alive, can it work, and which one is it."""

from __future__ import annotations

import asyncio
import functools
import platform
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from service.breaker import Breaker, State
from service.clients import Clients
from service.config import Settings
from service.db import Database
from service.errors import ConfigError, NotReadyError, ProblemError
from service.models import utc_now
from service.outbox import Outbox
from service.problems import responses

CHECK_DEADLINE_SECONDS = 3.0
CACHE_SECONDS = 1.0
# A sign-in is safe as soon as one of these takes it: taking the service out of its balancer would lose it.
HOMES = frozenset({"pubsub", "outbox"})
router = APIRouter(tags=["health"])


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Version(BaseModel):
    """Which program answers."""

    name: str = "signin-pipeline"
    version: str
    python: str


class Dependency(BaseModel):
    """What one dependency said."""

    ok: bool
    cause: str | None = Field(None, description="Why it is not ok")
    latency_ms: float


class Waiting(BaseModel):
    """What waits in the outbox, and whether events go there now."""

    breaker: State = Field(description="open: events go to the outbox; half_open: Pub/Sub is being tried")
    events: int = Field(description="Events in the outbox that wait for Pub/Sub")
    parked: int = Field(description="Events that Pub/Sub refused for good; `signin outbox status` says why")
    bytes: int
    oldest_age_seconds: float | None = Field(None, description="Age of the oldest that waits")


class Ready(BaseModel):
    """The topic or the outbox takes sign-ins; `degraded` says that something does not answer."""

    status: Literal["ready", "degraded"]
    dependencies: dict[str, Dependency]
    outbox: Waiting | None = Field(None, description="null while the database does not answer")
    database_schema: str | None = Field(None, description="How the database's schema fits this program")


class Readiness:
    """Asks every dependency at once, at most once in `CACHE_SECONDS` however often it is asked."""

    def __init__(
        self, settings: Settings, clients: Clients, database: Database, outbox: Outbox, breaker: Breaker
    ) -> None:
        self._settings = settings
        self._clients = clients
        self._database = database
        self._outbox = outbox
        self._breaker = breaker
        self.waiting: Waiting | None = None
        self.schema: str | None = None
        # Whether the schema has ever fitted this program, None while nobody could look.
        self.fitted: bool | None = None
        self._checks: dict[str, Callable[[], Awaitable[None]]] = {
            "database": self._check_database,
            "pubsub": self._check_pubsub,
            "dataflow": self._check_dataflow,
            "outbox": self._check_outbox,
        }
        self._asking = asyncio.Lock()
        self._asked_at = float("-inf")
        self._answers: dict[str, Dependency] = {}

    async def dependencies(self) -> dict[str, Dependency]:
        async with self._asking:
            if time.monotonic() - self._asked_at > CACHE_SECONDS:
                found = await asyncio.gather(*(self._ask(check) for check in self._checks.values()))
                self._answers = dict(zip(self._checks, found, strict=True))
                self._asked_at = time.monotonic()
            return self._answers

    async def _ask(self, check: Callable[[], Awaitable[None]]) -> Dependency:
        started = time.perf_counter()
        cause = None
        try:
            async with asyncio.timeout(CHECK_DEADLINE_SECONDS):
                await check()
        except Exception as error:  # noqa: BLE001 - a check that breaks is an answer too
            cause = _cause(error)
        return Dependency(
            ok=cause is None, cause=cause, latency_ms=round((time.perf_counter() - started) * 1000, 1)
        )

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
        age = (utc_now() - found.oldest_at).total_seconds() if found.oldest_at else None
        self.waiting = Waiting(
            breaker=self._breaker.state,
            events=self._outbox.waiting,
            parked=self._outbox.parked,
            bytes=self._outbox.bytes,
            oldest_age_seconds=None if age is None else round(max(age, 0.0), 3),
        )
        await self._outbox.require_writable()

    async def _check_pubsub(self) -> None:
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
        await jobs.list_jobs(request=request, timeout=CHECK_DEADLINE_SECONDS, retry=None)


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


@router.get("/healthz")
async def healthz() -> Alive:
    """Tell that the process is alive; asks nobody else."""
    return Alive()


@router.get("/readyz", responses=responses(NotReadyError))
async def readyz(request: Request) -> Ready:
    """Tell whether what the service needs answers, the cause where it does not, and what waits.

    503 only where neither the topic nor the outbox takes sign-ins, or where the program was started on a
    schema that it cannot use; else the status may say `degraded`.
    """
    readiness: Readiness = request.app.state.readiness
    dependencies = await readiness.dependencies()
    failed = {name: each.cause for name, each in dependencies.items() if not each.ok}
    if failed.keys() >= HOMES or readiness.fitted is False:
        raise NotReadyError(
            "; ".join(f"{name}: {cause}" for name, cause in failed.items()),
            retry_after_seconds=1,
            members={"dependencies": {name: each.model_dump() for name, each in dependencies.items()}},
        )
    status: Literal["ready", "degraded"] = "degraded" if failed else "ready"
    return Ready(
        status=status,
        dependencies=dependencies,
        outbox=readiness.waiting,
        database_schema=readiness.schema,
    )


@router.get("/version")
async def version() -> Version:
    """Tell which version of the service this is."""
    return Version(version=installed_version(), python=platform.python_version())


@functools.cache
def installed_version() -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("signin-pipeline")
    except PackageNotFoundError:
        return "unknown"
