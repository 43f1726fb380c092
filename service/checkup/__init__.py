"""`signin config check`: each connection that the service needs, tried, and how to mend what is not well."""

from __future__ import annotations

from functools import partial

from service import pipelines
from service.checkup import bigquery, dataflow, pubsub
from service.checkup.database import database
from service.checkup.findings import Check, Finding, run
from service.checkup.issuer import issuer
from service.checkup.monitoring import monitoring
from service.checkup.place import Place
from service.config import Settings, masked
from service.start_rules import start
from transforms.bigquery_rows import DEAD_LETTER_SCHEMA, SIGNIN_SCHEMA

__all__ = ["Finding", "check"]


async def check(settings: Settings, deadline_seconds: float) -> list[Finding]:
    """Tries all connections at once, each for at most `deadline_seconds`."""
    place = Place(settings)
    try:
        return await run(checks_of(place), deadline_seconds)
    finally:
        await place.close()


def checks_of(place: Place) -> list[Check]:
    """What there is to try, in the order in which it is told."""
    settings = place.settings
    return [
        Check("start", "signin serve", partial(start, settings)),
        Check(
            "database",
            masked(settings.database_url) or f"SQLite in {settings.data_dir}",
            partial(database, settings),
        ),
        Check("credentials", "Google Cloud", place.credentials),
        Check("topic", settings.topic_path, partial(pubsub.topic, place)),
        Check("subscription", settings.subscription_path, partial(pubsub.subscription, place)),
        Check("dataflow", f"{settings.project}, {settings.region}", partial(dataflow.region, place)),
        *_templates(place),
        *_buckets(place),
        Check("table", settings.table, partial(bigquery.table, place, settings.table, SIGNIN_SCHEMA)),
        Check(
            "dead letters",
            settings.dead_letter_table,
            partial(bigquery.table, place, settings.dead_letter_table, DEAD_LETTER_SCHEMA),
        ),
        Check("monitoring", settings.monitoring_endpoint, partial(monitoring, place)),
        Check("token issuer", settings.oidc_issuer, partial(issuer, settings)),
    ]


def _templates(place: Place) -> list[Check]:
    settings = place.settings
    names = dict.fromkeys((pipelines.BUILT_IN, pipelines.BACKFILL, *settings.pipelines))
    found = {name: pipelines.described(settings, name) for name in names}
    return [
        Check(
            "template",
            # The path of a template that is not set would read as if somebody had chosen it.
            name
            if settings.template_not_set(each.template_path)
            else str(each.template_metadata or each.template_path),
            partial(dataflow.template, place, name, each),
        )
        for name, each in found.items()
    ]


def _buckets(place: Place) -> list[Check]:
    """The buckets that the settings name for the files of jobs, each once."""
    settings = place.settings
    environments = [pipeline.environment for pipeline in settings.pipelines.values()]
    paths = [settings.staging_location, settings.temp_location]
    paths += [each.staging_location or "" for each in environments]
    paths += [each.temp_location or "" for each in environments]
    buckets = dict.fromkeys(f"gs://{path.removeprefix('gs://').partition('/')[0]}" for path in paths if path)
    return [Check("bucket", each, partial(dataflow.bucket, place, each)) for each in buckets]
