"""What `ingest` is compared with: `python -m tests.benchmarks.ingest_servers bare|typed|plain|sink|receiver`.

- `bare`: a FastAPI route that reads the body and answers 202 with constant bytes. The least a FastAPI
  application can do, and the measure for the service.
- `typed`: the same with a pydantic model as body and a dictionary as answer, as tutorials have it.
- `plain`: what most write at first: a pydantic model, the stock PublisherClient, `.result()` in a thread.
- `sink`: a Pub/Sub that gives ids and keeps nothing.
- `receiver`: an OTLP receiver that takes spans and keeps nothing.

The HTTP servers run with the service's own server settings, and print their address when they answer.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from datetime import datetime
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from service import server
from service.config import Settings
from tests.running import TOPIC

PATH = "/events/signin"
ANSWER = b'{"event_id":"019ab0f0-0000-7000-8000-000000000000","status":"published","message_id":"1"}'


class Signin(BaseModel):
    """A sign-in, as a tutorial would write it."""

    userid: str
    date: datetime


def bare() -> FastAPI:
    app = FastAPI()

    @app.post(PATH)
    async def nothing(request: Request) -> Response:
        await request.body()
        return Response(ANSWER, 202, media_type="application/json")

    return app


def typed() -> FastAPI:
    app = FastAPI()

    @app.post(PATH, status_code=202)
    async def nothing(signin: Signin) -> dict[str, str]:
        return {"event_id": "1", "status": "published", "message_id": signin.userid}

    return app


def plain() -> FastAPI:
    from google.cloud import pubsub_v1

    app = FastAPI()
    publisher = pubsub_v1.PublisherClient()

    @app.post(PATH, status_code=202)
    def publish(signin: Signin) -> dict[str, str]:
        message_id = publisher.publish(TOPIC, signin.model_dump_json().encode()).result(timeout=10)
        return {"status": "published", "message_id": message_id}

    return app


def receiver() -> FastAPI:
    app = FastAPI()

    @app.post("/v1/traces")
    async def take(request: Request) -> Response:
        await request.body()
        return Response(b"", 200, media_type="application/x-protobuf")

    return app


async def sink() -> None:
    import grpc
    import grpc.aio
    from google.pubsub_v1 import types

    numbers = itertools.count(1)
    request, response = types.PublishRequest.pb(), types.PublishResponse.pb()

    async def publish(asked: Any, _context: Any) -> Any:
        return response(message_ids=[str(next(numbers)) for _ in asked.messages])

    async def get_topic(_asked: bytes, _context: Any) -> bytes:
        return b""

    handlers = {
        "Publish": grpc.unary_unary_rpc_method_handler(
            publish, request.FromString, response.SerializeToString
        ),
        "GetTopic": grpc.unary_unary_rpc_method_handler(get_topic),
    }
    pubsub = grpc.aio.server(options=[("grpc.max_receive_message_length", 1 << 26)])
    pubsub.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("google.pubsub.v1.Publisher", handlers),)
    )
    port = pubsub.add_insecure_port("127.0.0.1:0")
    await pubsub.start()
    announce(f"127.0.0.1:{port}")
    await pubsub.wait_for_termination()


def announce(address: str) -> None:
    print(json.dumps({"ready": address}), flush=True)


def main() -> None:
    name = sys.argv[1]
    if name == "sink":
        asyncio.run(sink())
        return
    listener = server.listen_on("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    app = {"bare": bare, "typed": typed, "plain": plain, "receiver": receiver}[name]()
    app.state.settings = Settings(_env_file=None)  # where the server finds its limits
    server.run(app, listener, lambda: announce(url))


if __name__ == "__main__":
    main()
