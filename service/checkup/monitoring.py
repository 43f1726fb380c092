"""Cloud Monitoring, which tells what waits in a subscription."""

from __future__ import annotations

from service.checkup.findings import NotAsked, Trouble
from service.checkup.place import Place
from service.checkup.refusals import explained
from service.models import utc_now
from service.monitoring import MESSAGES, Monitoring

API = "monitoring.googleapis.com"


async def monitoring(place: Place) -> str:
    """Asks how much waits in the subscription of the settings."""
    settings = place.settings
    client = Monitoring(place.rest, settings)
    if not client.knows:
        raise NotAsked("Google's Monitoring knows nothing of an emulator's subscriptions.")
    try:
        found = await client.latest(settings.project, settings.subscription, MESSAGES, utc_now())
    except Exception as error:
        known = {
            "PERMISSION_DENIED": Trouble(
                "This service may not read it, so that jobs show no backlog: it lacks "
                "monitoring.timeSeries.list.",
                await place.grant("roles/monitoring.viewer"),
                is_fatal=False,
            ),
        }
        raise explained(error, settings.project, settings.monitoring_endpoint, known, api=API) from error
    if found is None:
        return "It answers, and has no points of the subscription yet."
    return f"It answers: {found[0]} messages wait."
