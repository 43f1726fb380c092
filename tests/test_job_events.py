"""The history of a job as a stream: every entry once and in order, wherever and whenever it is read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import httpx
import pytest
from fastapi import FastAPI

from service import job_store, job_streams, jobs, problems, server
from service.app import create_app
from service.auth import Guard, key_store
from service.google_rest import GoogleRest
from service.job_bodies import NewJob
from service.job_request import new_job
from service.models import utc_now
from tests.doors import bearer, make_key
from tests.job_world import World, make_world
from tests.serving import listening, settings_for

STREAM = {"Accept": "text/event-stream"}
pytestmark = pytest.mark.timeout(60)


class Entry(NamedTuple):
    id: int
    data: dict


@asynccontextmanager
async def replica(world: World) -> AsyncIterator[tuple[httpx.AsyncClient, server.Server]]:
    """The routes behind a real HTTP server, as one more replica on the world's database."""
    app = FastAPI()
    problems.install(app)
    app.include_router(jobs.router)
    app.state.settings = world.settings
    app.state.guard = Guard(world.settings)
    rest = GoogleRest(world.clients)
    app.state.desk = jobs.Desk(
        world.settings, world.database, world.dataflow, world.reconciler, rest, world.clock
    )
    started = asyncio.Event()
    with server.listen_on("127.0.0.1", 0) as listener:
        running = server.Server(app, started.set)
        task = asyncio.create_task(running.serve(sockets=[listener]))
        await asyncio.wait_for(started.wait(), 10)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with httpx.AsyncClient(base_url=url, timeout=20) as client:
                yield client, running
        finally:
            running.should_exit = True
            await asyncio.wait_for(task, 10)


async def read(lines: AsyncIterator[str], count: int | None = None) -> list[Entry]:
    """So many entries of a stream, or all until its end; comments and the retry time are passed over."""
    found: list[Entry] = []
    event: dict[str, str] = {}
    async for line in lines:
        if line:
            name, _, value = line.partition(": ")
            event[name] = value
        elif "data" in event:
            found.append(Entry(int(event["id"]), json.loads(event["data"])))
            event = {}
            if len(found) == count:
                break
        else:
            event = {}
    return found


async def note(world: World, job_id: str, kind: str) -> None:
    async with world.database.transaction() as session:
        lineage = await job_store.lock(session, job_id)
        job_store.record(session, lineage.job, world.clock(), kind, {})


async def finish(world: World, job_id: str) -> None:
    async with world.database.transaction() as session:
        lineage = await job_store.lock(session, job_id)
        lineage.job.state, lineage.job.ended_at = "DRAINED", world.clock()
        job_store.record(session, lineage.job, world.clock(), "state", {"to": "DRAINED"})


async def everything(world: World, job_id: str) -> list[int]:
    events = (await world.http.get(f"/jobs/{job_id}/events", params={"limit": 1000})).json()["events"]
    return [event["sequence"] for event in events]


async def test_a_stream_follows_the_job_to_its_end(world: World) -> None:
    job = await world.launch()
    async with (
        replica(world) as (client, _),
        client.stream("GET", f"/jobs/{job['id']}/events", headers=STREAM) as stream,
    ):
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.aiter_lines()
        assert [entry.data["kind"] for entry in await read(lines, 2)] == ["created", "launch_started"]
        await world.until(job["id"], "RUNNING")
        await world.http.post(f"/jobs/{job['id']}/drain")
        await world.until(job["id"], "DRAINED")
        rest = await read(lines)
        assert rest[-1].data["detail"]["to"] == "DRAINED"
        assert [entry.id for entry in rest] == (await everything(world, job["id"]))[2:]


async def test_who_reconnects_to_any_replica_sees_every_entry_once_and_in_order(world: World) -> None:
    job = await world.insert(state="RUNNING")
    path = f"/jobs/{job.id}/events"

    async def work() -> None:
        for number in range(60):
            await note(world, job.id, f"note-{number}")
        await finish(world, job.id)

    seen: list[Entry] = []
    async with replica(world) as (one, _), replica(world) as (other, _):
        working = asyncio.create_task(work())
        for attempt in range(1000):
            client = (one, other)[attempt % 2]
            resume = {"Last-Event-ID": str(seen[-1].id)} if seen else {}
            async with client.stream("GET", path, headers=STREAM | resume) as stream:
                if stream.status_code == 204:
                    break
                seen += await read(stream.aiter_lines(), 7)  # then the connection breaks off
        await working
    assert [entry.id for entry in seen] == await everything(world, job.id)
    kinds = [entry.data["kind"] for entry in seen if entry.data["kind"].startswith("note")]
    assert kinds == [f"note-{number}" for number in range(60)]


async def test_an_ended_job_is_told_at_once_and_then_there_is_nothing_more(world: World) -> None:
    job = await world.insert(state="RUNNING")
    await finish(world, job.id)
    async with replica(world) as (client, _):
        path = f"/jobs/{job.id}/events"
        whole = await client.get(path, headers=STREAM)
        assert whole.text.startswith("retry: 1000\n\n")
        last = (await everything(world, job.id))[-1]
        assert f"id: {last}\n" in whole.text
        assert (await client.get(path, headers=STREAM | {"Last-Event-ID": str(last)})).status_code == 204
        assert (await client.get(path, headers=STREAM, params={"after": last})).status_code == 204


async def test_a_stream_of_a_quiet_job_beats(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_streams, "HEARTBEAT_SECONDS", 0.0)
    monkeypatch.setattr(job_streams, "POLL_SECONDS", 0.02)
    job = await world.insert(state="RUNNING")
    async with (
        replica(world) as (client, _),
        client.stream("GET", f"/jobs/{job.id}/events", headers=STREAM) as stream,
    ):
        beats = 0
        async for line in stream.aiter_lines():
            beats += line == ": alive"
            if beats == 3:
                return
    pytest.fail("the stream ended")


async def test_streams_end_when_the_server_does(world: World) -> None:
    job = await world.insert(state="RUNNING")
    async with (
        replica(world) as (client, running),
        client.stream("GET", f"/jobs/{job.id}/events", headers=STREAM) as stream,
    ):
        lines = stream.aiter_lines()
        await read(lines, 1)
        running.should_exit = True
        assert await asyncio.wait_for(read(lines), 5) == []


async def test_there_are_no_more_streams_than_allowed(tmp_path, database_url: str) -> None:
    async with make_world(tmp_path, database_url, max_event_streams=1) as world:
        job = await world.insert(state="RUNNING")
        path = f"/jobs/{job.id}/events"
        async with replica(world) as (client, _):
            async with client.stream("GET", path, headers=STREAM) as stream:
                lines = stream.aiter_lines()  # the connection ends with it
                await read(lines, 1)
                second = await client.get(path, headers=STREAM)
                assert (second.status_code, second.json()["code"]) == (503, "too_many_streams")
                assert second.headers["retry-after"]
                assert (await client.get(path)).status_code == 200  # a page is no stream
            for _ in range(500):  # the server learns of the disconnect by itself
                async with client.stream("GET", path, headers=STREAM) as stream:
                    if stream.status_code == 200:
                        return
                await asyncio.sleep(0.02)
    pytest.fail("the place of the first stream was not given free")


@pytest.mark.parametrize("last", ["-1", "x", str(2**40)])
async def test_a_last_event_id_that_is_none_is_refused(last: str, world: World) -> None:
    job = await world.insert(state="RUNNING")
    answer = await world.http.get(f"/jobs/{job.id}/events", headers=STREAM | {"Last-Event-ID": last})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_a_stream_of_an_unknown_job_is_not_found(world: World) -> None:
    answer = await world.http.get(f"/jobs/{'0' * 20}/events", headers=STREAM)
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


@asynccontextmanager
async def followed(tmp_path, database_url: str, host: str) -> AsyncIterator[tuple]:
    """The whole service with a job and a reader's key, and a way to follow the job; yields both."""
    settings = settings_for(tmp_path, database_url=database_url, host=host, key_refresh_seconds=0.05)
    app = create_app(settings)
    async with listening(settings, app) as port:
        job = new_job(NewJob(shared_subscription=True), settings, utc_now())
        async with app.state.database.transaction() as session:
            await job_store.insert(session, job, "test")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield (
                app,
                lambda headers: client.stream("GET", f"/jobs/{job.id}/events", headers=STREAM | headers),
            )


async def test_a_stream_ends_with_the_key_that_it_was_asked_for_with(
    tmp_path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_streams, "POLL_SECONDS", 0.05)
    async with followed(tmp_path, database_url, "0.0.0.0") as (app, follow):
        key, other = [await make_key(app.state.database, "jobs:read", name=name) for name in ("a", "b")]
        async with follow(bearer(key.text)) as stream, follow(bearer(other.text)) as second:
            lines, others = stream.aiter_lines(), second.aiter_lines()
            await read(lines, 1)
            await read(others, 1)
            await key_store.revoke(app.state.database, key.row.id, utc_now(), "test")
            await asyncio.wait_for(read(lines), 5)  # to its end
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(read(others), 0.5)
        async with follow(bearer(key.text)) as again:
            assert again.status_code == 401


async def test_a_stream_that_needed_no_key_ends_with_the_first_one(
    tmp_path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_streams, "POLL_SECONDS", 0.05)
    async with followed(tmp_path, database_url, "127.0.0.1") as (app, follow), follow({}) as stream:
        lines = stream.aiter_lines()
        await read(lines, 1)
        await make_key(app.state.database, "jobs:read")
        await asyncio.wait_for(read(lines), 5)  # to its end
