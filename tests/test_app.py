"""The application as a process: what it imports, how it starts, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from service.app import create_app
from service.clients import MissingCredentialsError
from service.config import Settings
from service.local.faults import Fault
from tests.running import clean_environment
from tests.sample_metrics import scraped
from tests.serving import ARTICLE, JSON, pubsub_with_topic, running, until

ROOT = Path(__file__).parent.parent
PROGRAM = """
from service import logs, server
from service.app import create_app
from service.config import Settings
settings = Settings(_env_file=None)
logs.configure(settings)
listener = server.listen_on("127.0.0.1", 0)
server.run(create_app(settings), listener, lambda: print(listener.getsockname()[1], flush=True))
"""


def test_importing_the_application_imports_neither_beam_nor_googles_clients_nor_what_makes_spans():
    program = """
        import json, sys
        from service import app, tracing
        from service.config import Settings
        settings = Settings(_env_file=None)
        app.create_app(settings, traces=tracing.from_environment(settings, "1"))
        heavy = ("apache_beam", "grpc", "google.api_core", "google.auth", "google.cloud.", "google.pubsub_v1",
                 "opentelemetry.sdk", "opentelemetry.exporter", "service.spans")
        print(json.dumps([name for name in sys.modules if name.startswith(heavy)]))
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(found.stdout) == []


@asynccontextmanager
async def process(settings):
    """The service in a process of its own; yields it with its URL."""
    environment = os.environ | {
        "PUBSUB_EMULATOR_HOST": settings.pubsub_emulator_host,
        "DATAFLOW_EMULATOR_HOST": settings.dataflow_emulator_host,
        "SIGNIN_DATA_DIR": str(settings.data_dir),
        "SIGNIN_PUBLISH_DEADLINE_SECONDS": str(settings.publish_deadline_seconds),
    }
    service = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM), cwd=ROOT, env=environment, stdout=subprocess.PIPE
    )
    try:
        port = int(await asyncio.wait_for(service.stdout.readline(), 30))
        yield service, f"http://127.0.0.1:{port}"
    finally:
        if service.returncode is None:
            service.kill()
        await service.wait()


async def test_a_real_server_publishes_and_ends_cleanly_on_sigterm_with_events_under_way(tmp_path):
    async with pubsub_with_topic(tmp_path) as (server, settings, reader):
        async with process(settings) as (service, url), httpx.AsyncClient(base_url=url, timeout=20) as client:
            first = await client.post("/events/signin", content=ARTICLE, headers=JSON)
            assert first.status_code == 202, first.text
            server.faults.set([Fault(method="Publish", delay_seconds=0.5)])
            under_way = [
                asyncio.create_task(client.post("/events/signin", content=ARTICLE, headers=JSON))
                for _ in range(20)
            ]
            await until(lambda: server.faults.calls["Publish"] > 1)
            async with asyncio.timeout(10):
                # What was taken in and has no answer yet, and what has had one: then nobody is at the door.
                while (await scraped(client))["signin_publish_waiting_events",] + sum(  # noqa: ASYNC110
                    each.done() for each in under_way
                ) < len(under_way):
                    await asyncio.sleep(0.01)
            service.send_signal(signal.SIGTERM)
            answers = await asyncio.gather(*under_way)
            assert {answer.status_code for answer in answers} == {202}
            assert await asyncio.wait_for(service.wait(), 15) == 0
        assert len(await reader.pull(21)) == 21


async def test_a_caller_that_hangs_up_early_does_not_disturb_the_server(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, reader), process(settings) as (_service, url):
        host, port = url.removeprefix("http://").split(":")
        for announced in (len(ARTICLE), len(ARTICLE) + 10):  # gone before the answer, gone before the end
            _, writer = await asyncio.open_connection(host, int(port))
            head = f"POST /events/signin HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {announced}\r\n\r\n".encode() + ARTICLE)
            await writer.drain()
            writer.close()
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            assert (await client.post("/events/signin", content=ARTICLE, headers=JSON)).status_code == 202
        assert len(await reader.pull(2)) == 2


async def test_the_lifespan_puts_its_parts_on_the_state_and_leaves_no_task(tmp_path):
    before = asyncio.all_tasks()
    async with pubsub_with_topic(tmp_path) as (_, settings, _reader):
        app = create_app(settings)
        async with running(app):
            for name in ("settings", "clients", "publisher", "database", "dataflow", "reconciler"):
                assert getattr(app.state, name)
            names = {task.get_name() for task in asyncio.all_tasks() - before}
            assert {"reconciler", "warm-up"} <= names
        left = {task.get_name() for task in asyncio.all_tasks() - before}
        assert not left & {"reconciler", "warm-up"}


async def test_the_cloud_without_credentials_does_not_start(tmp_path, monkeypatch):
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("PATH", str(tmp_path))
    app = create_app(Settings(_env_file=None, project="my-project", data_dir=tmp_path))
    with pytest.raises(MissingCredentialsError):
        async with running(app):
            pass
