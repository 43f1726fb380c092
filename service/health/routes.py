"""`/healthz`, `/startupz`, `/readyz` and `/version`: alive, started, able to work, and which one it is."""

from __future__ import annotations

import platform
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from service.errors import NotReadyError, ShuttingDownError, StartingError
from service.health.lifetime import Lifetime
from service.health.readiness import Dependency, Lease, Readiness, Waiting
from service.health.version import installed_version
from service.problems import responses

# A sign-in is safe as soon as one of these takes it: taking the service out of its balancer would lose it.
HOMES = frozenset({"pubsub", "outbox"})
# Where it is known from who may come in.
CALLERS_SOURCES = frozenset({"database", "issuer"})
router = APIRouter(tags=["health"])


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Started(BaseModel):
    """The process has loaded all that it needs."""

    status: Literal["started"] = "started"
    after_seconds: float = Field(description="How long that took")


class Version(BaseModel):
    """Which program answers."""

    name: str = "signin-pipeline"
    version: str
    python: str


class Ready(BaseModel):
    """The topic or the outbox takes sign-ins; `degraded` says that something does not answer."""

    status: Literal["ready", "degraded"]
    dependencies: dict[str, Dependency]
    outbox: Waiting | None = Field(None, description="null while the database does not answer")
    database_schema: str | None = Field(None, description="How the database's schema fits this program")
    lease: Lease | None = Field(None, description="null while there is none, or the database does not answer")


@router.get("/healthz")
async def healthz() -> Alive:
    """Tell that the process is alive; asks nobody else."""
    return Alive()


@router.get("/startupz", responses=responses(StartingError))
async def startupz(request: Request) -> Started:
    """Tell whether the start is over: from then on no request waits for a library to be loaded.

    Depends on nothing outside of the process, so that an outage elsewhere does not make it start again.
    """
    lifetime: Lifetime = request.app.state.lifetime
    if lifetime.warm_after_seconds is None:
        raise StartingError("The libraries of Google Cloud are still being loaded.", retry_after_seconds=1)
    return Started(after_seconds=round(lifetime.warm_after_seconds, 3))


@router.get("/readyz", responses=responses(NotReadyError, ShuttingDownError))
async def readyz(request: Request) -> Ready:
    """Tell whether what the service needs answers, the cause where it does not, and what waits.

    503 only where neither the topic nor the outbox takes sign-ins, where the program was started on a schema
    that it cannot use, where nobody is let in (no keys were read yet, or there are none but the issuer's and
    those cannot be had), or from the signal to end on; else the status may say `degraded`.
    """
    lifetime: Lifetime = request.app.state.lifetime
    readiness: Readiness = request.app.state.readiness
    dependencies = {} if lifetime.is_ending else await readiness.dependencies()
    if lifetime.is_ending:  # perhaps since a moment ago
        raise ShuttingDownError("The service has been asked to end.", retry_after_seconds=1)
    failed = {name: each.cause for name, each in dependencies.items() if not each.ok}
    if failed.keys() & CALLERS_SOURCES and not request.app.state.guard.knows_callers:
        failed["keys"] = (
            "they could not be read since the start, so nobody is let in"
            if "database" in failed
            else "no API key is good and no token can be verified, so nobody is let in"
        )
    if failed.keys() >= HOMES or readiness.fitted is False or "keys" in failed:
        told = {name: each.model_dump(mode="json") for name, each in dependencies.items()}
        raise NotReadyError(
            "; ".join(f"{name}: {cause}" for name, cause in failed.items()),
            retry_after_seconds=1,
            members={"dependencies": told},
        )
    lease = readiness.lease
    if lease and not await request.app.state.guard.recognises(request.scope):
        lease = lease.model_copy(update={"holder": None})  # names of machines are nothing for strangers
    status: Literal["ready", "degraded"] = "degraded" if failed else "ready"
    return Ready(
        status=status,
        dependencies=dependencies,
        outbox=readiness.waiting,
        database_schema=readiness.schema,
        lease=lease,
    )


@router.get("/version")
async def version() -> Version:
    """Tell which version of the service this is."""
    return Version(version=installed_version(), python=platform.python_version())
