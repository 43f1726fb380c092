"""Servers on this machine that `signin config check` may ask, and the findings of its checks."""

from __future__ import annotations

from service import checkup
from service.checkup.place import Place

DEADLINE_SECONDS = 10.0


class World:
    """Pub/Sub, Dataflow, Monitoring and Cloud Storage on this machine, all well."""

    def __init__(self, settings, pubsub, dataflow, storage):
        self.settings = settings
        self.pubsub = pubsub
        self.dataflow = dataflow
        self.storage = storage

    async def find(self, *names, deadline_seconds=DEADLINE_SECONDS, **values):
        """The findings of the named checks; of all without."""
        settings = self.settings.model_copy(update=values)
        place = Place(settings)
        try:
            chosen = [each for each in checkup.checks_of(place) if not names or each.name in names]
            return await checkup.run(chosen, deadline_seconds)
        finally:
            await place.close()
