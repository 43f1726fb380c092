"""The messages and metrics of the local Dataflow server, in the shapes that Dataflow's have."""

from __future__ import annotations

import time

import pytest
from google.pubsub_v1 import types

from service.local.monitoring import MonitoringServer
from service.local.pubsub import PubsubServer
from tests.dataflow_client import DataflowClient, local_dataflow


@pytest.fixture
async def client(tmp_path):
    async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as made:
        yield made


async def test_counters_come_committed_and_tentative(client):
    job = await client.launch_running("counting")
    assert await client.counters(job.id) == {("parsed", ""): 3, ("parsed", "true"): 3}
    await client.request_state(job.id, "DRAINED")
    await client.until(job.id, "DRAINED")
    assert await client.counters(job.id) == {("parsed", ""): 5, ("parsed", "true"): 5}


async def test_a_distribution_comes_whole_and_in_four_numbers(client):
    job = await client.launch_running("timed", timed="yes")
    told = [m for m in await client.all_metrics(job.id) if m.name.name.startswith("age")]
    committed = [metric for metric in told if "tentative" not in metric.name.context]
    assert len(told) == 2 * len(committed) == 10
    whole, *parts = committed
    assert whole.kind == "Distribution"
    assert dict(whole.name.context) == {"namespace": "signin", "step": "Write"}
    assert dict(whole.distribution) == {"count": 2, "sum": 30, "min": 10, "max": 20, "mean": 15}
    assert whole.scalar is None
    numbers = {metric.name.name: metric.scalar for metric in parts}
    assert numbers == {"age_COUNT": 2, "age_MIN": 10, "age_MAX": 20, "age_MEAN": 15}


async def test_messages_are_ranked_paged_and_cut_by_time(client):
    job = await client.launch("failing-job", fail="1")
    await client.until(job.id, "FAILED")
    everything = await client.told(job.id)
    assert [m.time for m in everything] == sorted(m.time for m in everything)
    assert await client.told(job.id, page_size=1) == everything
    grave = await client.texts(job.id, minimum_importance="JOB_MESSAGE_WARNING")
    assert grave[0] == "WARNING something is about to happen"
    basic = await client.texts(job.id, minimum_importance="JOB_MESSAGE_BASIC")
    assert "Workers have started successfully." in basic
    assert not any(text.startswith("INFO") for text in basic)
    middle = everything[3].time
    later = await client.told(job.id, start_time=middle)
    earlier = await client.told(job.id, end_time=middle)
    assert earlier + later == everything


async def test_dataflows_own_metrics_have_the_shapes_that_beam_reads(client):
    job = await client.launch_running("counting", graph="Read/Impulse,Read/Pull,Decode", handled="7")
    told = await client.all_metrics(job.id)
    own = [metric for metric in told if metric.name.origin == "dataflow/v1b3"]
    elements = [metric for metric in own if metric.name.name == "ElementCount"]
    context = {"output_user_name": "Read-out0", "original_name": "Read-out0-ElementCount"}
    assert [dict(metric.name.context) for metric in elements] == [context, context | {"tentative": "true"}]
    assert [metric.scalar for metric in elements] == [7, 7]
    assert {metric.name.name for metric in own} == {"ElementCount", "CurrentVcpuCount"}
    later = max(metric.update_time for metric in told)
    await client.request_state(job.id, "DRAINED")
    await client.until(job.id, "DRAINED")
    changed = {
        metric.name.name: metric.scalar for metric in await client.all_metrics(job.id, start_time=later)
    }
    assert changed == {"parsed": 5, "CurrentVcpuCount": 0}


async def test_the_lag_of_a_job_is_the_age_of_its_subscriptions_oldest_message(tmp_path, monkeypatch):
    published_at = time.time() - 100
    async with (
        PubsubServer(clock=lambda: published_at) as pubsub,
        MonitoringServer(pubsub.broker) as monitoring,
    ):
        monkeypatch.setenv("SIGNIN_MONITORING_ENDPOINT", monitoring.url)
        topic, subscription = "projects/signin-local/topics/t-1", "projects/signin-local/subscriptions/s-1"
        pubsub.broker.create_topic(types.Topic.pb()(name=topic))
        pubsub.broker.create_subscription(types.Subscription.pb()(name=subscription, topic=topic))
        request = types.PublishRequest.pb()(topic=topic)
        request.messages.add(data=b"x")
        pubsub.broker.publish(request)
        async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as client:
            job = await client.launch_running("lagging", greeting=subscription)
            ages = {
                metric.name.name: metric.scalar
                for metric in await client.all_metrics(job.id)
                if metric.name.name in ("SystemLag", "DataWatermarkAge")
            }
            assert 100 <= ages["SystemLag"] == ages["DataWatermarkAge"] <= 120


async def test_messages_of_an_importance_come_with_the_graver_ones_whatever_the_enums_numbers(client):
    job = await client.launch("failing-job", fail="1")
    await client.until(job.id, "FAILED")

    async def importances(least):
        told = await client.told(job.id, minimum_importance=f"JOB_MESSAGE_{least}")
        return {message.message_importance.name.removeprefix("JOB_MESSAGE_") for message in told}

    assert await importances("ERROR") == {"ERROR"}
    assert await importances("WARNING") == {"WARNING", "ERROR"}
    assert await importances("BASIC") == {"BASIC", "WARNING", "ERROR"}  # its number is the highest
    assert await importances("DETAILED") == {"DETAILED", "BASIC", "WARNING", "ERROR"}
    assert await client.scalings(job.id) == [
        ("CURRENT_NUM_WORKERS_CHANGED", 1, "The job has 1 worker, a process on this machine."),
        ("CURRENT_NUM_WORKERS_CHANGED", 0, "The worker is gone."),
    ]


async def test_scaling_events_survive_a_restart_of_the_server(tmp_path):
    async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as client:
        job = await client.launch("short-job", finish="yes")
        await client.until(job.id, "DONE")
        before = await client.scalings(job.id)
    async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as client:
        assert await client.scalings(job.id) == before != []
