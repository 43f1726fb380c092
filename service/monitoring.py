"""What waits in a subscription, as Cloud Monitoring knows it.

https://cloud.google.com/monitoring/api/ref_v3/rest/v3/projects.timeSeries/list
"""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from service.config import Settings
from service.google_rest import GoogleRest, RestError
from service.kept import Kept

log = logging.getLogger(__name__)

MESSAGES = "pubsub.googleapis.com/subscription/num_undelivered_messages"
OLDEST_AGE = "pubsub.googleapis.com/subscription/oldest_unacked_message_age"
DEADLINE_SECONDS = 5.0
# Points come once a minute and up to some minutes late; an older one says nothing of now.
_WINDOW = timedelta(minutes=10)
_KEPT_SECONDS = 10.0
_KEPT_LOCAL_SECONDS = 1.0
_SUBSCRIPTION = re.compile(r"projects/([^/\s]+)/subscriptions/([A-Za-z][A-Za-z0-9._~+%-]{2,254})")


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a subscription held at the moment `at`; None is not known, which is not zero."""

    messages: int | None = None
    oldest_age_seconds: int | None = None
    at: datetime | None = None


class _Value(msgspec.Struct, rename="camel"):
    int64_value: str | None = None
    double_value: float | None = None


class _Interval(msgspec.Struct, rename="camel"):
    end_time: datetime


class _Point(msgspec.Struct):
    interval: _Interval
    value: _Value


class _Series(msgspec.Struct):
    points: list[_Point] = []


class _Answer(msgspec.Struct, rename="camel"):
    time_series: list[_Series] = []


class Monitoring:
    """Asks at most once in a while for each subscription."""

    def __init__(self, rest: GoogleRest, settings: Settings) -> None:
        self._rest = rest
        self._endpoint = settings.monitoring_endpoint.rstrip("/")
        is_emulator = self._endpoint.startswith("http://")
        # Google's Monitoring knows nothing of an emulator's subscriptions.
        self.knows = is_emulator or not settings.pubsub_emulator_host
        self._kept: Kept[Backlog] = Kept(_KEPT_LOCAL_SECONDS if is_emulator else _KEPT_SECONDS)

    async def backlog(self, subscription: str | None, now: datetime) -> Backlog:
        """What waits in the subscription (its full name); what cannot be had is None."""
        match = _SUBSCRIPTION.fullmatch(subscription or "")
        if not match or not self.knows:
            return Backlog()
        return await self._kept.fetch(match[0], lambda: self._ask(match[1], match[2], now))

    async def _ask(self, project: str, subscription_id: str, now: datetime) -> Backlog:
        messages, age = await asyncio.gather(
            *(self._latest(project, subscription_id, metric, now) for metric in (MESSAGES, OLDEST_AGE))
        )
        at = min((each[1] for each in (messages, age) if each), default=None)
        return Backlog(messages[0] if messages else None, age[0] if age else None, at)

    async def _latest(
        self, project: str, subscription_id: str, metric: str, now: datetime
    ) -> tuple[int, datetime] | None:
        try:
            return await self.latest(project, subscription_id, metric, now)
        except (RestError, msgspec.MsgspecError) as error:
            log.info("the backlog of %s is not known: %s", subscription_id, error)
            return None

    async def latest(
        self, project: str, subscription_id: str, metric: str, now: datetime
    ) -> tuple[int, datetime] | None:
        """The newest value and its time, None where there is none. Raises RestError and MsgspecError."""
        parameters = {
            "filter": f'metric.type="{metric}" AND resource.labels.subscription_id="{subscription_id}"',
            "interval.startTime": (now - _WINDOW).isoformat().replace("+00:00", "Z"),
            "interval.endTime": now.isoformat().replace("+00:00", "Z"),
        }
        url = f"{self._endpoint}/v3/projects/{project}/timeSeries"
        body = await self._rest.get(url, parameters, deadline_seconds=DEADLINE_SECONDS)
        answer = msgspec.json.decode(body, type=_Answer)
        points = [point for series in answer.time_series for point in series.points]
        newest = max(points, key=lambda point: point.interval.end_time, default=None)
        if newest is None:
            return None
        text = newest.value.int64_value  # JSON has no 64-bit integers
        value = newest.value.double_value if text is None else float(text)
        return None if value is None else (int(value), newest.interval.end_time)
