"""Who did what: the audit log and the histories, by each act and each refusal."""

from __future__ import annotations

import asyncio
import json
import logging
from itertools import count

import pytest

from service import audit
from service.app import create_app
from service.auth import keys, scopes
from service.local.faults import Fault
from service.logs import JsonFormatter
from service.models import utc_now
from tests.doors import bearer, make_key, shut
from tests.serving import ARTICLE, JSON, NOBODY, running


@pytest.fixture
def records(caplog):
    """What the audit log says, as programs read it."""
    caplog.set_level(logging.INFO, "service.audit")
    return lambda: [
        json.loads(JsonFormatter("signin-local").format(record))["audit"]
        for record in caplog.records
        if record.name == "service.audit"
    ]


class Operator:
    """Acts with a key, each request under an id of its own, and knows which was which."""

    def __init__(self, client, key):
        self._client = client
        self._headers = bearer(key.text)
        self._numbers = count(1)
        self.asked = {}

    async def act(self, method, path, body=None):
        request_id = f"r-{next(self._numbers)}"
        answer = await self._client.request(
            method, path, json=body, headers=self._headers | {"X-Request-ID": request_id}
        )
        self.asked[request_id] = (method, path, answer.status_code)
        return answer

    async def get(self, path):
        return (await self._client.get(path, headers=self._headers)).json()

    async def until(self, path, state, seconds=15.0):
        async with asyncio.timeout(seconds):
            while (await self.get(path))["state"] != state:  # noqa: ASYNC110 - the server is asked
                await asyncio.sleep(0.02)


def exposed(settings, directory):
    """The settings of a service that wants a key, and whose Pub/Sub and BigQuery are away."""
    away = {"pubsub_emulator_host": NOBODY, "bigquery_emulator_host": f"http://{NOBODY}"}
    return settings.model_copy(update={"host": "0.0.0.0", "data_dir": directory} | away)


async def acts_on_jobs(operator, world):
    """Launches a job, asks all of it that can be asked for, and returns its path."""
    job = f"/jobs/{(await operator.act('POST', '/jobs', {})).json()['id']}"
    await operator.until(job, "RUNNING")
    await operator.act("PATCH", f"{job}/autoscaling", {"max_workers": 2})
    await operator.act("POST", f"{job}/update", {})
    world.fail(Fault("UpdateJob", "UNAVAILABLE"))  # the job goes on: what is asked next meets it alive
    await operator.act("POST", f"{job}/cancel")
    await operator.act("POST", f"{job}/drain")
    await operator.act("POST", f"{job}/force-cancel", {"confirm": "FORCE-CANCEL"})
    await operator.act("POST", "/jobs/adopt", {"dataflow_job_id": "nowhere"})
    return job


async def test_each_act_is_in_the_log_and_in_the_history_with_the_key_s_name_and_the_request(
    world, tmp_path, records
):
    app = create_app(exposed(world.settings, tmp_path))
    async with running(app) as client:
        key = await make_key(app.state.database, scopes.ADMIN, name="night-shift")
        operator = Operator(client, key)
        job = await acts_on_jobs(operator, world)
        # BigQuery is away, so that the replay waits for its cancel.
        replay = (await operator.act("POST", "/dead-letters/replay", {"dry_run": True})).json()
        ended = await operator.act("POST", f"/dead-letters/replays/{replay['id']}/cancel")
        history = (await operator.get(f"{job}/events"))["events"]

    said = records()
    assert [(each["act"], each["status"]) for each in said] == [
        ("POST /jobs", 202),
        ("PATCH /jobs/{job_id}/autoscaling", 202),
        ("POST /jobs/{job_id}/update", 202),
        ("POST /jobs/{job_id}/cancel", 202),
        ("POST /jobs/{job_id}/drain", 409),
        ("POST /jobs/{job_id}/force-cancel", 409),
        ("POST /jobs/adopt", 404),
        ("POST /dead-letters/replay", 202),
        ("POST /dead-letters/replays/{replay_id}/cancel", 200),
    ]
    assert [each["code"] for each in said if "code" in each] == [
        "action_not_allowed",
        "action_not_allowed",
        "dataflow_job_not_found",
    ]
    assert {each["actor"] for each in said} == {"key:night-shift"}
    assert [each.get("job_id") for each in said[:6]] == [job.removeprefix("/jobs/")] * 6
    assert [each.get("replay_id") for each in said[7:]] == [replay["id"]] * 2

    asked = {each["kind"]: each["request_id"] for each in history if each["actor"] == "key:night-shift"}
    assert asked == {
        "created": "r-1",
        "scale_requested": "r-2",
        "update_requested": "r-3",
        "cancel_requested": "r-4",
    }
    assert {each["request_id"] for each in history if each["actor"] == "service"} == {None}
    shown = ended.json()
    assert (shown["actor"], shown["request_id"], shown["cancelled_by"]) == (
        "key:night-shift",
        "r-8",
        "key:night-shift",
    )


async def test_the_log_has_the_request_s_id_beside_the_act(tmp_path, database_url, caplog):
    caplog.set_level(logging.INFO, "service.audit")
    written = []
    handler = logging.Handler()
    handler.emit = lambda record: written.append(json.loads(JsonFormatter("signin-local").format(record)))
    logging.getLogger("service.audit").addHandler(handler)
    try:
        async with shut(tmp_path, database_url) as (_, client):
            await client.post("/jobs", json={}, headers={"X-Request-ID": "r-9"})
    finally:
        logging.getLogger("service.audit").removeHandler(handler)
    [entry] = written
    assert (entry["severity"], entry["request_id"]) == ("WARNING", "r-9")
    assert entry["message"] == "nobody: POST /jobs, refused with 401"


async def test_sign_ins_and_looks_are_no_acts(tmp_path, database_url, records):
    async with shut(tmp_path, database_url) as (app, client):
        headers = bearer((await make_key(app.state.database, scopes.ADMIN)).text)
        await client.get("/jobs", headers=headers)
        await client.post("/events/signin", content=ARTICLE, headers=JSON | headers)
        await client.post("/nowhere", headers=headers)
    assert records() == []


async def test_an_act_that_is_turned_away_before_its_route_is_in_the_log(tmp_path, database_url, records):
    async with shut(tmp_path, database_url, control_requests_per_second=0.1) as (app, client):
        job = "/jobs/abc/cancel"
        many = bearer((await make_key(app.state.database, scopes.JOBS_WRITE, name="day-shift")).text)
        await client.post(job, headers=many | {"Content-Encoding": "gzip"}, content=b"x")
        await client.post(job, headers=many)
        await client.get("/jobs", headers=many)
        await client.post("/events/signin", content=ARTICLE, headers=JSON | many)
        large = bearer((await make_key(app.state.database, scopes.JOBS_WRITE, name="late-shift")).text)
        await client.post("/jobs", headers=large, content=b" " * 100_000)
        await client.post("/nowhere", headers=large)
    assert records() == [
        {
            "actor": "key:day-shift",
            "act": "POST /jobs/{job_id}/cancel",
            "status": 415,
            "job_id": "abc",
            "code": "unsupported_media_type",
        },
        {
            "actor": "key:day-shift",
            "act": "POST /jobs/abc/cancel",
            "status": 429,
            "code": "rate_limited",
            "address": "127.0.0.1",
        },
        {"actor": "key:day-shift", "act": "POST /events/signin", "status": 403, "code": "insufficient_scope"}
        | {"address": "127.0.0.1"},
        {"actor": "key:late-shift", "act": "POST /jobs", "status": 413, "code": "body_too_large"},
    ]


@pytest.mark.parametrize("is_open", [True, False])
async def test_acts_that_are_turned_away_cannot_fill_the_log(
    tmp_path, database_url, records, monkeypatch, is_open
):
    monkeypatch.setattr(audit, "MOST_REFUSALS_AT_ONCE", 4.0)
    monkeypatch.setattr(audit, "REFUSALS_PER_SECOND", 0.0)
    values = {"host": "127.0.0.1"} if is_open else {"control_requests_per_second": 0.1}
    async with shut(tmp_path, database_url, **values) as (app, client):
        headers = {"Content-Encoding": "gzip"}  # of anybody: 415
        if not is_open:  # of one key: 429
            headers = bearer((await make_key(app.state.database, scopes.JOBS_WRITE)).text)
            await client.get("/jobs", headers=headers)
        for _ in range(9):
            await client.post("/jobs/abc/cancel", headers=headers, content=b"x")
        actor, status = ("api", 415) if is_open else ("key:tester", 429)
        assert [(each["actor"], each["status"]) for each in records()] == [(actor, status)] * 4


async def test_refusals_are_logged_at_a_bounded_rate_and_never_with_the_key(
    tmp_path, database_url, records, monkeypatch, caplog
):
    monkeypatch.setattr(audit, "MOST_REFUSALS_AT_ONCE", 4.0)
    monkeypatch.setattr(audit, "REFUSALS_PER_SECOND", 0.0)
    async with shut(tmp_path, database_url) as (app, client):
        small = await make_key(app.state.database, scopes.EVENTS_WRITE, name="sender")
        wrong = keys.generate("x", frozenset(), utc_now(), None)
        await client.post("/jobs", json={}, headers=bearer(small.text))
        await client.get("/jobs/a%0ab", headers=bearer(wrong.text))
        for _ in range(8):
            await client.post("/events/signin", content=ARTICLE, headers=JSON)
        said = records()
        assert [(each["actor"], each["act"], each["status"], each["code"]) for each in said] == [
            ("key:sender", "POST /jobs", 403, "insufficient_scope"),
            ("nobody", "GET /jobs/a\\nb", 401, "invalid_credentials"),
            *[("nobody", "POST /events/signin", 401, "authentication_required")] * 2,
        ]
        monkeypatch.setattr(audit, "REFUSALS_PER_SECOND", 1e9)
        await client.get("/jobs")
        assert records()[-1]["unlogged"] == 6
    assert small.text[-43:] not in caplog.text
    assert wrong.text[-43:] not in caplog.text
