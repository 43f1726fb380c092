"""What waits in a subscription, told as Cloud Monitoring does, over HTTP."""

from __future__ import annotations

import asyncio
import socket
import time
from datetime import UTC, datetime

import httpx
import pytest
from google.pubsub_v1 import types

from service.local.broker import Broker
from service.local.monitoring import MESSAGES, OLDEST_AGE, MonitoringServer
from tests.serving import pubsub_with_topic

SUBSCRIPTION = "user-signin-bigquery"
OF_SUBSCRIPTION = f' AND resource.labels.subscription_id="{SUBSCRIPTION}"'


class Place:
    """A Pub/Sub with the topic, its Monitoring, and an HTTP client of that; `ahead` moves its clock."""

    def __init__(self, pubsub, reader, settings):
        self.pubsub = pubsub
        self.reader = reader
        self.settings = settings
        self.ahead = 0.0

    def clock(self):
        return datetime.now(UTC).timestamp() + self.ahead

    async def publish(self, *data):
        request = types.PublishRequest.pb()(topic=self.settings.topic_path)
        for each in data:
            request.messages.add(data=each)
        await self.reader.call("Publisher", "Publish", request, types.PublishResponse.pb())

    async def ask(self, **parameters):
        values = {
            "filter": f'metric.type="{MESSAGES}"{OF_SUBSCRIPTION}',
            "interval.endTime": datetime.fromtimestamp(self.clock(), UTC).isoformat(),
        } | {name.replace("_", "."): value for name, value in parameters.items()}
        url = f"/v3/projects/{self.settings.project}/timeSeries"
        return await self.http.get(url, params={k: v for k, v in values.items() if v is not None})

    async def value(self, metric):
        answer = await self.ask(filter=f'metric.type = "{metric}"{OF_SUBSCRIPTION}')
        assert answer.status_code == 200, answer.text
        [series] = answer.json()["timeSeries"]
        assert series["metric"] == {"type": metric}
        [point] = series["points"]
        return int(point["value"]["int64Value"])


@pytest.fixture
async def place(tmp_path):
    async with pubsub_with_topic(tmp_path) as (pubsub, settings, reader):
        place = Place(pubsub, reader, settings)
        async with (
            MonitoringServer(pubsub.broker, clock=place.clock) as server,
            httpx.AsyncClient(base_url=server.url, timeout=5) as place.http,
        ):
            yield place


async def test_the_backlog_counts_what_waits_and_what_is_leased_until_it_is_acknowledged(place):
    assert (await place.value(MESSAGES), await place.value(OLDEST_AGE)) == (0, 0)
    await place.publish(b"1", b"2", b"3")
    assert await place.value(MESSAGES) == 3
    leased = types.PullRequest.pb()(
        subscription=place.settings.subscription_path, max_messages=2, return_immediately=True
    )
    answer = await place.reader.call("Subscriber", "Pull", leased, types.PullResponse.pb())
    assert await place.value(MESSAGES) == 3
    place.ahead = 90.0
    assert 90 <= await place.value(OLDEST_AGE) <= 95
    ids = [received.ack_id for received in answer.received_messages]
    done = types.AcknowledgeRequest.pb()(subscription=place.settings.subscription_path, ack_ids=ids)
    await place.reader.call("Subscriber", "Acknowledge", done, types.Topic.pb())
    assert await place.value(MESSAGES) == 3 - len(ids)


async def test_a_point_is_of_now_and_an_interval_that_is_past_has_none(place):
    now = datetime.fromtimestamp(place.clock(), UTC)
    answer = await place.ask(interval_endTime=now.isoformat())
    [point] = answer.json()["timeSeries"][0]["points"]
    assert datetime.fromisoformat(point["interval"]["endTime"]) <= now
    place.ahead = 120.0
    assert (await place.ask(interval_endTime=now.isoformat())).json() == {}


async def test_without_a_subscription_every_one_of_the_project_is_told(place):
    answer = await place.ask(filter=f'metric.type="{MESSAGES}" AND resource.type="pubsub_subscription"')
    labels = [series["resource"]["labels"]["subscription_id"] for series in answer.json()["timeSeries"]]
    assert labels == [SUBSCRIPTION]
    unknown = f'metric.type="{MESSAGES}" AND resource.labels.subscription_id="nothing"'
    assert (await place.ask(filter=unknown)).json() == {}


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"filter": None}, "The filter may name one of"),
        ({"filter": 'metric.type="pubsub.googleapis.com/topic/byte_cost"'}, "The filter may name one of"),
        ({"filter": f'metric.type="{MESSAGES}" OR x="y"'}, "cannot be read"),
        ({"filter": f'metric.type="{MESSAGES}" AND metric.labels.x="y"'}, "The filter may name one of"),
        ({"interval_endTime": None}, "interval.endTime is missing"),
        ({"interval_endTime": "yesterday"}, "interval.endTime is not a time"),
    ],
)
async def test_what_is_not_offered_is_refused_in_googles_form(place, parameters, said):
    answer = await place.ask(**parameters)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    assert said in error["message"]


async def test_other_paths_and_methods_are_refused(place):
    assert (await place.http.get("/v3/projects/p/metricDescriptors")).status_code == 404
    assert (await place.http.post("/v3/projects/p/timeSeries", content=b"x" * 100)).status_code == 405


async def test_bytes_that_are_no_request_end_the_connection(place):
    reader, writer = await asyncio.open_connection(place.http.base_url.host, place.http.base_url.port)
    writer.write(b"\x00\x01nonsense\r\n\r\n")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_it_listens_on_the_port_that_it_is_given():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with (
        MonitoringServer(Broker(time.time), port=port) as server,
        httpx.AsyncClient(base_url=server.url, timeout=5) as http,
    ):
        assert server.url == f"http://127.0.0.1:{port}"
        assert (await http.get("/")).status_code == 404
