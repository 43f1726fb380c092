"""The README's program that notifies of each sign-in, as a user runs it."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.readme_tables import README
from tests.serving import until
from tests.tail_world import DATE, PROJECT, signin, tail_world


@pytest.fixture
async def world(tmp_path):
    async with tail_world(tmp_path) as world:
        yield world


class Webhook:
    """Takes notifications over HTTP; the first answer is 503."""

    def __init__(self):
        self.texts = []
        self.refused = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r")[0]))
        status = b"200 OK"
        if not self.refused:
            self.refused, status = 1, b"503 Unavailable"
        else:
            self.texts.append(json.loads(body)["text"])
        writer.write(b"HTTP/1.1 %s\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status)
        await writer.drain()
        writer.close()


async def test_the_readmes_program_notifies_of_each_sign_in(world):
    program = (
        README.read_text().split("<!-- program: notify.py -->")[1].split("```python\n")[1].split("```")[0]
    )
    assert len(program.splitlines()) <= 35
    (world.directory / "notify.py").write_text(program)
    async with Webhook() as webhook, world.run("notify.py", WEBHOOK_URL=webhook.url):
        path = f"projects/{PROJECT}/subscriptions/user-signin-notify"
        deadline = asyncio.get_running_loop().time() + 20
        while path not in await world.subscriptions():
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)
        await world.publish((b"broken", {}), (signin(7)[0], {"replay_of": "k", "event_id": "r"}))
        await world.publish(*(signin(number) for number in range(5)))
        await until(lambda: len(webhook.texts) >= 5, 20)
    assert sorted(webhook.texts) == [f"user-{number} signed in at {DATE}" for number in range(5)]
    assert webhook.refused == 1
