"""What the way of a sign-in counts: requests, events by what became of them, and Publish calls."""

from __future__ import annotations

from service.local.faults import Fault
from tests.sample_metrics import scraped
from tests.serving import ARTICLE, JSON, NOBODY, pubsub_with_topic, serving, settings_for

BATCH = b'[{"userid": "1", "date": "2017-10-17T20:57:17Z"}, {"userid": 2}, {"userid": "3", "date": "x"}]'


async def test_each_request_is_counted_under_its_route_and_status(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, _reader), serving(settings) as client:
        await client.post("/events/signin", content=ARTICLE, headers=JSON)
        await client.post("/events/signin", content=b"{", headers=JSON)
        await client.post("/events/signin/batch", content=BATCH, headers=JSON)
        await client.get("/jobs/nothing")
        await client.get("/nowhere")
        found = await scraped(client)
    requests = {key[1:]: value for key, value in found.items() if key[0] == "signin_requests_total"}
    assert requests["POST", "/events/signin", "202"] == 1
    assert requests["POST", "/events/signin", "400"] == 1
    assert requests["POST", "/events/signin/batch", "207"] == 1
    assert requests["GET", "", "404"] == 1
    assert found["signin_request_seconds_count", "POST", "/events/signin"] == 2
    assert 0 < found["signin_request_seconds_sum", "POST", "/events/signin"] < 60


async def test_published_and_refused_events_are_counted_one_by_one(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, _reader), serving(settings) as client:
        await client.post("/events/signin", content=ARTICLE, headers=JSON)
        await client.post("/events/signin", content=b'{"userid": "1"}', headers=JSON)
        await client.post("/events/signin/batch", content=BATCH, headers=JSON)
        found = await scraped(client)
    assert found["signin_events_total", "", "published"] == 2
    assert found["signin_events_total", "date_missing", "refused"] == 1
    assert found["signin_events_total", "userid_invalid", "refused"] == 1
    assert found["signin_events_total", "date_invalid", "refused"] == 1
    assert found["signin_publish_seconds_count", "OK"] == 2
    assert found["signin_publish_batch_messages_sum",] == 2


async def test_spooled_events_and_failed_calls_are_counted(tmp_path, database_url):
    async with (
        pubsub_with_topic(tmp_path, database_url=database_url, breaker_open_seconds=60) as (
            server,
            settings,
            _,
        ),
        serving(settings) as client,
    ):
        server.faults.set([Fault(method="Publish", code="ABORTED")])
        for _ in range(5):
            answer = await client.post("/events/signin", content=ARTICLE, headers=JSON)
            assert answer.json()["status"] == "spooled"
        found = await scraped(client)
    assert found["signin_events_total", "", "spooled"] == 5
    assert found["signin_publish_seconds_count", "ABORTED"] >= settings.breaker_failures


async def test_an_event_without_a_home_is_counted_as_refused(tmp_path):
    settings = settings_for(tmp_path, NOBODY, database_url="sqlite:////proc/nowhere.db")
    async with serving(settings) as client:
        answer = await client.post("/events/signin", content=ARTICLE, headers=JSON)
        assert answer.status_code == 503
        found = await scraped(client)
    assert found["signin_events_total", "publish_unavailable", "refused"] == 1
    assert found["signin_problems_total", "publish_unavailable", "/events/signin"] == 1
