"""The application: its routes, and what it is built of while it runs."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.types import ASGIApp

from service import documentation, events, health, jobs, openapi, problems, scrape
from service.auth import Guard
from service.auth.routes import Routes
from service.bodies import Bodies
from service.breaker import Breaker
from service.clients import Clients
from service.config import Settings
from service.dataflow import Dataflow
from service.db import Database
from service.dead_letters import routes as dead_letters
from service.dead_letters.replayer import Replayer
from service.dead_letters.table import DeadLetterTable
from service.edge import Edge
from service.errors import ConfigError, DatabaseUnavailableError
from service.google_rest import GoogleRest
from service.job_meters import JobMeters
from service.metrics import Metrics
from service.metrics_export import MetricsExport
from service.outbox import Outbox
from service.publisher import Publisher, TracedPublisher
from service.reconciler import Reconciler
from service.relay import Relay
from service.topic import Topic

if TYPE_CHECKING:
    from service.spans import Traces

log = logging.getLogger(__name__)

CLOSE_DEADLINE_SECONDS = 5.0
_PUBLISHER_GRACE_SECONDS = 2.0
_DESCRIPTION = "Takes sign-ins and runs the Dataflow job that writes them to BigQuery."


class Service(FastAPI):
    """FastAPI with our edge around all of its layers."""

    def build_middleware_stack(self) -> ASGIApp:
        return Edge(
            super().build_middleware_stack(),
            Bodies(self.state.settings),
            events.ENDPOINTS,
            self.state.metrics,
            self.state.guard,
            self.state.traces,
        )


def create_app(settings: Settings, metrics: Metrics | None = None, traces: Traces | None = None) -> FastAPI:
    """The whole service; its lifespan connects everything, and at its end closes `traces` too."""
    app = Service(
        title="Sign-in pipeline",
        description=_DESCRIPTION,
        version=health.installed_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=documentation.OPENAPI if settings.docs else None,
        redirect_slashes=False,  # its Location repeats whatever the caller wrote into Host
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        telemetry={"tracing": False, "metrics": False, "logs": False},  # else asked for at every request
    )
    app.state.settings = settings
    app.state.metrics = metrics or Metrics()
    app.state.lifetime = health.Lifetime()
    app.state.traces = traces
    app.state.guard = Guard(settings, Routes(settings, lambda: app.routes))
    app.router.routes.extend(events.router.routes)  # include_router would look for the busiest route twice
    app.include_router(jobs.router)
    app.include_router(dead_letters.router)
    app.include_router(health.router)
    app.include_router(scrape.router)
    problems.install(app, app.state.metrics)
    openapi.install(app)
    if settings.docs:
        documentation.install(app)
    return app


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Builds what the routes use, and takes it apart in the opposite order, each part within a deadline.

    Raises MissingCredentialsError before anything is served.
    """
    settings: Settings = app.state.settings
    async with AsyncExitStack() as stack:
        traces = stack.enter_context(_closing(app.state.traces))
        clients = Clients(settings)
        stack.push_async_callback(_closed, "clients", clients.close, CLOSE_DEADLINE_SECONDS)
        if settings.uses_google_cloud:
            await _require_credentials(clients)
        database = Database(settings)
        stack.push_async_callback(_closed, "database", database.close, CLOSE_DEADLINE_SECONDS)
        app.state.guard.database = database
        metrics: Metrics = app.state.metrics
        topic, outbox = Topic(clients, settings, metrics, traces), Outbox(database, settings, metrics=metrics)
        breaker = _breaker(settings, metrics, topic, outbox)
        publisher = _publisher(topic, outbox, breaker, settings, traces)
        publishing = (
            settings.publish_patience_seconds + settings.outbox_deadline_seconds + _PUBLISHER_GRACE_SECONDS
        )
        stack.push_async_callback(_closed, "publisher", publisher.close, publishing)
        table = DeadLetterTable(settings)
        stack.push_async_callback(_closed, "dead letters", table.close, CLOSE_DEADLINE_SECONDS)
        replayer = Replayer(database, outbox, table, metrics=metrics)
        dataflow = Dataflow(clients, settings, metrics, traces)
        reconciler = Reconciler(database, dataflow, settings, metrics=metrics, traces=traces)
        app.state.clients, app.state.database, app.state.outbox = clients, database, outbox
        app.state.breaker, app.state.publisher = breaker, publisher
        app.state.dead_letters, app.state.replayer = table, replayer
        app.state.dataflow, app.state.reconciler = dataflow, reconciler
        app.state.outbox_watch = scrape.watch(metrics, outbox, publisher, app.state.guard)
        stack.push_async_callback(app.state.outbox_watch.close)
        app.state.desk = desk = jobs.Desk(settings, database, dataflow, reconciler, GoogleRest(clients))
        stack.push_async_callback(_closed, "desk", desk.close, CLOSE_DEADLINE_SECONDS)
        app.state.readiness = health.Readiness(
            settings, clients, database, outbox, breaker, reconciler, app.state.guard
        )
        warm_up = _warm_up(clients, database, app.state.lifetime)
        stack.push_async_callback(_ended, asyncio.create_task(warm_up, name="warm-up"))
        relay = Relay(topic, outbox, breaker, settings, metrics)
        for work in (
            *(reconciler, relay, metrics, replayer, app.state.guard),
            JobMeters(reconciler.watch, desk.telemetry, settings, metrics),
            MetricsExport(metrics, lambda: scrape.shared_gauges(app), app.version),
        ):
            task = asyncio.create_task(work.run(), name=type(work).__name__.lower())
            stack.push_async_callback(_ended, task)
        yield


@contextmanager
def _closing(traces: Traces | None) -> Iterator[Traces | None]:
    """Hands on what makes the spans, and sends the last of them at the end."""
    try:
        yield traces
    finally:
        if traces:
            traces.close()


def _publisher(
    topic: Topic, outbox: Outbox, breaker: Breaker, settings: Settings, traces: Traces | None
) -> Publisher:
    if traces:
        return TracedPublisher(topic, outbox, breaker, settings, traces)
    return Publisher(topic, outbox, breaker, settings)


def _breaker(settings: Settings, metrics: Metrics, topic: Topic, outbox: Outbox) -> Breaker:
    def opened() -> None:
        metrics.breaker_opened.add()
        topic.log_outage(breaker.cause)

    breaker = Breaker(
        failures=settings.breaker_failures,
        open_seconds=settings.breaker_open_seconds,
        probe_seconds=settings.breaker_open_seconds,
        on_opened=opened,
        on_closed=lambda: topic.log_return(outbox.rows),
    )
    metrics.breaker_is(lambda: breaker.state)
    return breaker


async def _require_credentials(clients: Clients) -> None:
    try:
        await clients.credentials()
    except ConfigError as error:
        log.critical("%s", error)
        raise


async def _warm_up(clients: Clients, database: Database, lifetime: health.Lifetime) -> None:
    """What can wait until the service answers: Google's libraries, which the first event needs, and a look
    at the schema, of which the log is told where it is not this program's own.
    """
    try:
        await clients.pubsub()
        await clients.dataflow_jobs()
        scrape.prepare()
        # A full collection would walk everything that was imported, and stop the loop for 0.1 s each time.
        gc.freeze()
    except Exception:  # the next call meets the same error and tells it to its caller
        log.exception("Google's client libraries could not be prepared")
    finally:
        lifetime.warmed_up()  # the database is no part of the start
    with suppress(DatabaseUnavailableError):
        fit = await database.fit()
        if fit.kind != "current":
            log.warning("%s", fit.sentence)


async def _closed(name: str, close: Callable[[], Awaitable[None]], deadline_seconds: float) -> None:
    try:
        await asyncio.wait_for(close(), deadline_seconds)
    except TimeoutError:
        log.warning("%s did not close within %g s", name, deadline_seconds)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task], timeout=CLOSE_DEADLINE_SECONDS)
    if task.done() and not task.cancelled() and task.exception():
        log.error("the %s ended too early", task.get_name(), exc_info=task.exception())
