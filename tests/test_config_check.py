"""`signin config check`: each connection is tried, and what is wrong is told with what mends it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service import checkup
from service.checkup.place import Place
from service.config import Pipeline, Settings
from service.local.dataflow import DataflowServer
from service.local.faults import Fault
from service.local.monitoring import MonitoringServer
from tests.bigquery_servers import StrictBigQuery
from tests.checkup_world import DEADLINE_SECONDS, World
from tests.doors import AUDIENCE, Issuer
from tests.serving import NOBODY, pubsub_with_topic, settings_for
from tests.storage_server import StorageServer


@pytest.fixture
async def world(tmp_path):
    with StorageServer("jobs") as storage, StrictBigQuery() as bigquery:
        async with (
            DataflowServer(tmp_path / "dataflow") as dataflow,
            pubsub_with_topic(
                tmp_path,
                dataflow_emulator_host=dataflow.address,
                storage_endpoint=storage.url,
                temp_location="gs://jobs/temp",
                bigquery_emulator_host=bigquery.url,
            ) as (pubsub, values, _),
            MonitoringServer(pubsub.broker) as monitoring,
        ):
            settings = values.model_copy(update={"monitoring_endpoint": monitoring.url})
            yield World(settings, pubsub, dataflow, storage)


async def test_what_is_well_is_told_as_ok(world, database_url):
    spec = b'{"metadata": {"parameters": [{"name": "input_subscription"}]}}'
    for name in ("user-signin", "backfill-signin"):
        world.storage.objects["signin-local", f"templates/{name}.json"] = spec
    found = await world.find(database_url=database_url)
    assert {each.check: each.status for each in found} == {
        "start": "ok",
        "database": "ok",
        "credentials": "skipped",
        "topic": "ok",
        "subscription": "ok",
        "dataflow": "ok",
        "template": "ok",
        "bucket": "ok",
        "table": "ok",
        "dead letters": "ok",
        "monitoring": "ok",
        "token issuer": "skipped",
    }
    assert all(each.remedies == () for each in found if each.status == "ok")


TOPIC, SUBSCRIPTION = "topic-user-signin", "user-signin-bigquery"
REFUSALS = {
    "topic": {
        "not there": (
            [("GetTopic", "NOT_FOUND")],
            "failed",
            "There is no such topic",
            "pubsub topics create",
        ),
        "no publishing": ([("Publish", "PERMISSION_DENIED")], "failed", "pubsub.topics.publish", "publisher"),
        "no looking": ([("GetTopic", "PERMISSION_DENIED")], "ok", "may publish", ""),
        "nothing told": (
            [("GetTopic", "PERMISSION_DENIED"), ("TestIamPermissions", "UNIMPLEMENTED")],
            "warning",
            "cannot be told",
            "roles/pubsub.viewer",
        ),
        "unknown": ([("GetTopic", "UNAUTHENTICATED")], "failed", "not accepted", "gcloud auth"),
        "away": ([("GetTopic", "UNAVAILABLE")], "failed", "cannot be reached", "pubsub.googleapis.com"),
        "odd": ([("GetTopic", "DATA_LOSS")], "failed", "answers DATA_LOSS", ""),
        "other emulator": ([("TestIamPermissions", "UNIMPLEMENTED")], "ok", "It is there", ""),
    },
    "subscription": {
        "not there": ([("GetSubscription", "NOT_FOUND")], "failed", "nothing to read", f"--topic={TOPIC}"),
        "no looking": (
            [("GetSubscription", "PERMISSION_DENIED")],
            "warning",
            "pubsub.subscriptions.get",
            f"subscriptions add-iam-policy-binding {SUBSCRIPTION}",
        ),
    },
    "dataflow": {
        "forbidden": ([("ListJobs", "PERMISSION_DENIED")], "failed", "jobs.list", "roles/dataflow.developer"),
        "no region": ([("ListJobs", "NOT_FOUND")], "failed", "no region", "SIGNIN_REGION"),
        "bad region": ([("ListJobs", "INVALID_ARGUMENT")], "failed", "no region", "SIGNIN_REGION"),
    },
}


@pytest.mark.parametrize("check", REFUSALS)
async def test_each_refusal_is_told_with_what_mends_it(world, check):
    server = world.dataflow if check == "dataflow" else world.pubsub
    for what, (faults, status, detail, remedy) in REFUSALS[check].items():
        server.faults.set([Fault(method=method, code=code) for method, code in faults])
        [found] = await world.find(check)
        assert found.status == status, what
        assert detail in found.detail, what
        assert remedy in " ".join(found.remedies), what
        assert bool(found.remedies) == bool(remedy), what


async def test_all_are_asked_at_once_and_none_waits_longer_than_its_deadline(world):
    world.pubsub.faults.set([Fault(method=each, hold=True) for each in ("GetTopic", "GetSubscription")])
    world.dataflow.faults.set([Fault(method="ListJobs", hold=True)])
    asking = asyncio.create_task(
        world.find("topic", "subscription", "dataflow", "bucket", deadline_seconds=2.0)
    )
    async with asyncio.timeout(10):
        await world.pubsub.faults.until_held(count=2)  # both are on their way before either is answered
        await world.dataflow.faults.until_held()
        found = await asking
    assert [each.status for each in found] == ["failed", "failed", "failed", "ok"]
    assert {each.detail for each in found[:3]} == {"There was no answer within 2 s."}
    world.pubsub.faults.set([])
    world.dataflow.faults.set([])


async def test_a_subscription_of_another_topic_is_told(world):
    [found] = await world.find("subscription", topic="topic-other")
    assert found.status == "failed"
    assert f"reads projects/signin-local/topics/{TOPIC} and not" in found.detail


async def test_buckets_and_templates_that_cannot_be_used_are_told(world, tmp_path):
    broken = tmp_path / "template.json"
    broken.write_text("{")
    pipelines = {
        "bad": Pipeline(template_path="gs://jobs/bad.json", template_metadata=broken),
        "gone": Pipeline(template_path="gs://jobs/gone.json"),
    }
    found = await world.find("template", "bucket", pipelines=pipelines, staging_location="gs://nowhere/s")
    told = {each.target: each for each in found}
    assert told["gs://jobs"].status == "ok"
    assert "buckets create gs://nowhere --project=signin-local" in told["gs://nowhere"].remedies[0]
    assert "no such spec" in told["gs://jobs/gone.json"].detail
    assert "template publish gone" in told["gs://jobs/gone.json"].remedies[0]
    assert told[str(broken)].remedies == (f"signin template validate {broken}",)
    world.storage.script = [403]
    [found] = await world.find("bucket")
    assert "roles/storage.objectViewer" in found.remedies[0]


async def test_a_template_without_metadata_is_no_trouble_and_one_that_is_not_utf_8_is(world):
    world.storage.objects["jobs", "bare.json"] = b'{"image": "i"}'
    world.storage.objects["jobs", "odd.json"] = b'{"image": "\xff"}'
    names = ("bare", "odd")
    pipelines = {name: Pipeline(template_path=f"gs://jobs/{name}.json") for name in names}
    told = {each.target: each for each in await world.find("template", pipelines=pipelines)}
    bare, odd = (told[f"gs://jobs/{name}.json"] for name in names)
    assert (bare.status, odd.status) == ("ok", "failed")
    assert "no metadata" in bare.detail
    assert "no readable template: the spec is not UTF-8" in odd.detail


async def test_a_table_that_cannot_take_the_rows_is_told_by_its_column(world):
    with StrictBigQuery(columns=["userid"]) as bigquery:
        [found] = await world.find("table", bigquery_emulator_host=bigquery.url)
    assert found.status == "failed"
    assert "has no column date of the type TIMESTAMP REQUIRED" in found.detail
    [found] = await world.find("table", table="no table")
    assert (found.status, found.remedies) == ("failed", ("Set it as dataset.table.",))
    [found] = await world.find("dead letters", bigquery_emulator_host=NOBODY)
    assert (found.status, "cannot be reached" in found.detail) == ("failed", True)


async def test_the_keys_of_the_issuer_are_fetched(world):
    with Issuer().serving() as issuer:
        values = {"oidc_issuer": issuer.url, "oidc_audience": AUDIENCE}
        [found] = await world.find("token issuer", **values)
        assert (found.status, found.detail) == ("ok", "It has 1 keys that sign tokens for us.")
        issuer.answer = 404
        [found] = await world.find("token issuer", **values)
        assert found.status == "failed"
        assert "404" in found.detail
    [found] = await world.find("token issuer", **values)
    assert found.status == "failed"
    assert "SIGNIN_OIDC_ISSUER" in found.remedies[0]


async def test_a_database_that_was_not_migrated_or_is_away_is_told(tmp_path, empty_database_url):
    async def find(url):
        place = Place(settings_for(tmp_path, database_url=url))
        try:
            checks = [each for each in checkup.checks_of(place) if each.name == "database"]
            [found] = await checkup.run(checks, DEADLINE_SECONDS)
            return found
        finally:
            await place.close()

    found = await find(empty_database_url)
    assert (found.status, found.remedies) == ("failed", ("signin migrate",))
    found = await find(f"postgresql://signin:hush-hush@{NOBODY}/nothing")
    assert (found.status, found.target) == ("failed", f"postgresql://***@{NOBODY}/nothing")
    assert "hush" not in str(found)
    found = await find("")
    assert (found.status, found.remedies) == ("ok", ())


async def test_a_data_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/signin")):
        place = Place(Settings(_env_file=None, data_dir=directory))
        try:
            [database] = [each for each in checkup.checks_of(place) if each.name == "database"]
            [found] = await checkup.run([database], DEADLINE_SECONDS)
        finally:
            await place.close()
        assert found.status == "failed"
        assert f"none can be made in {directory}" in found.detail
        assert "SIGNIN_DATA_DIR" in found.remedies[0]
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


async def test_what_would_keep_the_service_from_starting_is_told(tmp_path):
    place = Place(Settings(_env_file=None, data_dir=tmp_path, host="0.0.0.0", oidc_issuer="http://h"))
    try:
        [start] = [each for each in checkup.checks_of(place) if each.name == "start"]
        [found] = await checkup.run([start], DEADLINE_SECONDS)
    finally:
        await place.close()
    assert found.status == "failed"
    assert "SIGNIN_PROJECT is not set" in found.detail
    assert "SIGNIN_OIDC_AUDIENCE" in found.detail
