"""How old the oldest message is that a job has not finished, as the stack's Monitoring tells it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import msgspec

from service.local.dataflow.job import LocalJob

DEADLINE_SECONDS = 1.0
_METRIC = "pubsub.googleapis.com/subscription/oldest_unacked_message_age"
_SUBSCRIPTION = re.compile(r"projects/([^/\s]+)/subscriptions/([^/\s\"]+)")


class _Value(msgspec.Struct, rename="camel"):
    int64_value: str


class _Point(msgspec.Struct):
    value: _Value


class _Series(msgspec.Struct):
    points: list[_Point]


class _Answer(msgspec.Struct, rename="camel"):
    time_series: list[_Series] = []


class Lags:
    """Asks the Monitoring at `url`; empty where there is none, and then no age is known."""

    def __init__(self, url: str) -> None:
        self._url = url if url.startswith("http://") else ""  # Google's own knows nothing of this machine
        self._http: Any = None

    async def of(self, job: LocalJob) -> float | None:
        """Seconds; None where the job reads no subscription or the age cannot be had."""
        matches = (_SUBSCRIPTION.fullmatch(value) for value in job.launch.parameters.values())
        subscription = next((match for match in matches if match), None)
        if not (self._url and subscription and job.workers):
            return None
        import httpx

        if self._http is None:
            self._http = httpx.AsyncClient(timeout=DEADLINE_SECONDS)
        parameters = {
            "filter": f'metric.type="{_METRIC}" AND resource.labels.subscription_id="{subscription[2]}"',
            "interval.endTime": datetime.now(UTC).isoformat(),
        }
        url = f"{self._url}/v3/projects/{subscription[1]}/timeSeries"
        try:
            answer = await self._http.get(url, params=parameters)
            answer.raise_for_status()
            series = msgspec.json.decode(answer.content, type=_Answer).time_series
        except (httpx.HTTPError, msgspec.MsgspecError):
            return None
        return float(series[0].points[0].value.int64_value) if series and series[0].points else None

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()
