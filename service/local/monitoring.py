"""The corner of Cloud Monitoring that tells what waits in a subscription, over HTTP on loopback.

`GET /v3/projects/{project}/timeSeries` as in
https://cloud.google.com/monitoring/api/ref_v3/rest/v3/projects.timeSeries/list: the two metrics of
METRICS, one point each, of now. Anything else is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

import h11

from service.local.backlog import Backlog
from service.local.broker import Broker

MESSAGES = "pubsub.googleapis.com/subscription/num_undelivered_messages"
OLDEST_AGE = "pubsub.googleapis.com/subscription/oldest_unacked_message_age"
METRICS = (MESSAGES, OLDEST_AGE)
REQUEST_SECONDS = 5.0
KEPT_SECONDS = 60.0  # how long ago an interval may end that still holds the point of now
_AGED_MESSAGES = 100_000  # that are looked at for the oldest: 10 ms
_PATH = re.compile(r"/v3/projects/([^/]+)/timeSeries")
_SUBSCRIPTION = re.compile(r"projects/([^/]+)/subscriptions/(.+)")
_TERM = re.compile(r'\s*([a-z_]+(?:\.[a-z_]+)*)\s*=\s*"([^"\\]*)"\s*(?:AND\b|$)')
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}
_STATUSES = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 405: "UNIMPLEMENTED"}


class RequestError(Exception):
    """A request that is refused with an HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class MonitoringServer:
    """Serves the backlogs of `broker` at `url`, from `__aenter__` to `__aexit__`."""

    def __init__(
        self,
        broker: Broker,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.url = ""
        self._broker = broker
        self._host = host
        self._port = port
        self._clock = clock

    async def __aenter__(self) -> Self:
        try:
            self._server = await asyncio.start_server(self._serve, self._host, self._port)
        except OSError as error:
            raise OSError(
                f"{self._host}:{self._port} cannot be listened on: is another program using it?"
            ) from error
        self.url = f"http://{self._host}:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request for each connection."""
        connection = h11.Connection(h11.SERVER)
        with contextlib.suppress(TimeoutError, OSError, h11.ProtocolError):
            async with asyncio.timeout(REQUEST_SECONDS):
                request = await _receive(connection, reader)
                status, body = self._answer(request.method, request.target.decode())
                writer.write(_sent(connection, status, json.dumps(body).encode()))
                await writer.drain()
        writer.close()

    def _answer(self, method: bytes, target: str) -> tuple[int, dict[str, Any]]:
        try:
            return 200, self._list(method, target)
        except RequestError as error:
            status = _STATUSES[error.status]
            return error.status, {"error": {"code": error.status, "message": str(error), "status": status}}

    def _list(self, method: bytes, target: str) -> dict[str, Any]:
        if method != b"GET":
            raise RequestError(405, "Only GET is offered here.")
        parts = urlsplit(target)
        path = _PATH.fullmatch(parts.path)
        if not path:
            raise RequestError(404, f"{parts.path} is not offered here.")
        return time_series(self._broker, path[1], dict(parse_qsl(parts.query)), self._clock())


def time_series(broker: Broker, project: str, parameters: dict[str, str], now: float) -> dict[str, Any]:
    """The answer of `timeSeries.list`; `now` is in seconds since the epoch. Raises RequestError."""
    terms = _terms(parameters.get("filter", ""))
    metric = terms.pop("metric.type", "")
    wanted = terms.pop("resource.labels.subscription_id", None)
    kind = terms.pop("resource.type", "pubsub_subscription")
    if metric not in METRICS or kind != "pubsub_subscription" or terms:
        raise RequestError(400, f"The filter may name one of {', '.join(METRICS)} and a subscription_id.")
    end, start = (_moment(parameters, f"interval.{name}Time") for name in ("end", "start"))
    if end is None:
        raise RequestError(400, "interval.endTime is missing.")
    if now - end > KEPT_SECONDS or (start is not None and start > now):
        return {}
    at = _timestamp(min(end, now))
    found = []
    for name, subscription in sorted(broker.subscriptions.items()):
        match = _SUBSCRIPTION.fullmatch(name)
        if match and match[1] == project and wanted in (None, match[2]):
            value = _value(subscription.backlog, metric, now)
            found.append(_series(metric, project, match[2], at, value))
    return {"timeSeries": found} if found else {}


def _value(backlog: Backlog, metric: str, now: float) -> int:
    if metric == MESSAGES:
        return backlog.count()
    held = itertools.chain(backlog.outstanding(), itertools.islice(backlog.waiting(), _AGED_MESSAGES))
    oldest = min((message.published_at for message in held), default=now)
    return max(0, int(now - oldest))


def _series(metric: str, project: str, subscription: str, at: str, value: int) -> dict[str, Any]:
    labels = {"project_id": project, "subscription_id": subscription}
    return {
        "metric": {"type": metric},
        "resource": {"type": "pubsub_subscription", "labels": labels},
        "metricKind": "GAUGE",
        "valueType": "INT64",
        "points": [{"interval": {"startTime": at, "endTime": at}, "value": {"int64Value": str(value)}}],
    }


def _terms(text: str) -> dict[str, str]:
    """`a.b="c" AND d="e"` as a dictionary. Raises RequestError for other filters."""
    terms: dict[str, str] = {}
    position = 0
    while position < len(text):
        term = _TERM.match(text, position)
        if not term:
            raise RequestError(400, f"The filter cannot be read here: {text!r}")
        terms[term[1]] = term[2]
        position = term.end()
    return terms


def _moment(parameters: dict[str, str], name: str) -> float | None:
    text = parameters.get(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise RequestError(400, f"{name} is not a time: {text!r}") from None
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


def _timestamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


async def _receive(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request:
    """The head of the request. Raises ProtocolError where it is none, or too long."""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(1 << 14))
        else:
            raise h11.RemoteProtocolError("no request came")


def _sent(connection: h11.Connection, status: int, body: bytes) -> bytes:
    headers = [
        ("content-type", "application/json; charset=UTF-8"),
        ("content-length", str(len(body))),
        ("connection", "close"),
    ]
    answer = h11.Response(status_code=status, headers=headers, reason=_REASONS[status])
    parts = [connection.send(event) for event in (answer, h11.Data(data=body), h11.EndOfMessage())]
    return b"".join(part for part in parts if part)
