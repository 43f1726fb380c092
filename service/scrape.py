"""`GET /metrics`: what all processes counted, and what the outbox holds, as Prometheus reads it."""

from __future__ import annotations

import asyncio
import importlib

from fastapi import APIRouter, FastAPI, Request, Response

from service.auth import Guard
from service.config import Settings
from service.errors import DatabaseUnavailableError
from service.metrics import Metrics, families
from service.metrics.exposition import rendered
from service.metrics.families import Family
from service.metrics.shared import Labelled
from service.models import utc_now
from service.outbox import Outbox
from service.outbox_store import OutboxStatus
from service.publisher import Publisher

OUTBOX_DEADLINE_SECONDS = 1.0
router = APIRouter(tags=["health"])


def prepare() -> None:
    """Imports what renders the metrics, which takes 0.1 s, so that no scrape holds the requests up."""
    importlib.import_module("prometheus_client")


class OutboxWatch:
    """What the outbox holds; while the database is slow there is one question under way, not one a scrape."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._asking: asyncio.Task[OutboxStatus] | None = None

    async def look(self) -> OutboxStatus | None:
        """The status as `Outbox.count` keeps it; None where the database does not answer within a second."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._outbox.count(), name="count of the outbox")
        asking = self._asking
        await asyncio.wait({asking}, timeout=OUTBOX_DEADLINE_SECONDS)
        if not asking.done() or asking.cancelled():
            return None
        error = asking.exception()
        if isinstance(error, DatabaseUnavailableError | TimeoutError):
            return None
        return asking.result()

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Tell what was counted since the start, by all processes, in the text format of Prometheus."""
    found: Metrics = request.app.state.metrics
    gauges = await shared_gauges(request.app)
    text, content_type = rendered(found.everybody(), gauges, request.headers.get("accept", ""))
    return Response(text, headers={"content-type": content_type})


def watch(metrics: Metrics, outbox: Outbox, publisher: Publisher, guard: Guard) -> OutboxWatch:
    """Names who tells what a process holds and knows at the moment of a scrape."""
    metrics.tells(families.PUBLISH_WAITING, lambda: publisher.load()[0])
    metrics.tells(families.PUBLISH_FILL, lambda: publisher.load()[1])
    metrics.tells(families.KEYS_AGE, guard.keys_age_seconds)
    metrics.tells(families.ISSUER_KEYS_FAILED, guard.issuer_failed)
    return OutboxWatch(outbox)


async def shared_gauges(app: FastAPI) -> dict[str, Labelled]:
    """What all processes of the service share and none of them counts."""
    found: OutboxWatch = app.state.outbox_watch
    gauges = outbox_gauges(await found.look(), app.state.settings)
    gauges[families.INFO.name] = [((app.version,), 1)]
    return gauges


def outbox_gauges(status: OutboxStatus | None, settings: Settings) -> dict[str, Labelled]:
    if status is None:
        return {families.OUTBOX_COUNTED.name: [((), 0)]}
    age = (utc_now() - status.oldest_at).total_seconds() if status.oldest_at else 0.0
    values: dict[Family, float] = {
        families.OUTBOX_COUNTED: 1,
        families.OUTBOX_EVENTS: status.waiting,
        families.OUTBOX_PARKED: status.parked,
        families.OUTBOX_BYTES: status.bytes,
        families.OUTBOX_AGE: max(age, 0.0),
        families.OUTBOX_FILL: max(
            status.rows / settings.outbox_max_rows, status.bytes / settings.outbox_max_bytes
        ),
    }
    return {family.name: [((), value)] for family, value in values.items()}
