"""The fault switch of the local BigQuery: outages of an HTTP server, turned on over the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import msgspec

from service.local.faults import Fault, FaultSwitch

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

FAULTS_PATH = "/signin/faults"
_MAX_FAULTS_BYTES = 64 * 1024
_METHODS = (
    "cancel",
    "data",
    "datasets",
    "insertAll",
    "jobs",
    "projects",
    "queries",
    "routines",
    "tables",
)


class HttpFaultSwitch(FaultSwitch):
    """The fault switch where the `code` of a fault is an HTTP status as text, such as `503`."""

    def check(self, fault: Fault) -> None:
        """Raises ValueError for what is a fault of the gRPC servers only."""
        if fault.hold or fault.late:
            raise ValueError("hold and late are faults of the gRPC servers only")
        super().check(fault)

    def check_code(self, code: str) -> None:
        """Raises ValueError for a code that is no HTTP error status."""
        if code and not (code.isdecimal() and 400 <= int(code) <= 599):
            raise ValueError(f"{code} is not an HTTP error status")


class FaultMiddleware:
    """An ASGI application around `app` that fails calls as the switch says.

    `POST /signin/faults` takes a JSON list of `Fault`, `GET` tells how often each method was called.
    A method is the last collection or verb of the path: `insertAll`, `queries`, `tables`, `datasets`.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self.switch = HttpFaultSwitch(_METHODS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == FAULTS_PATH:
            await self._control(scope, receive, send)
        else:
            await self._call(scope, receive, send)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self.switch.draw(_method(scope["path"]))
        if fault is None:
            await self._app(scope, receive, send)
            return
        await asyncio.sleep(fault.delay_seconds)
        if fault.after or not fault.code:
            await self._app(scope, receive, _discard if fault.code else send)
        if fault.code:
            error = {"code": int(fault.code), "message": "injected by the fault switch", "errors": []}
            await _answer(send, int(fault.code), {"error": error})

    async def _control(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            await _answer(send, 200, dict(self.switch.calls))
            return
        try:
            self.switch.set(msgspec.json.decode(await _body(receive), type=list[Fault]))
        except (msgspec.MsgspecError, ValueError) as error:
            await _answer(send, 400, {"error": {"code": 400, "message": str(error), "errors": []}})
        else:
            await _answer(send, 200, {})


def set_http_faults(url: str, faults: Iterable[Fault], *, deadline_seconds: float = 5.0) -> None:
    """Sets the faults of the local BigQuery at `url`; an empty list ends them.

    Raises ValueError where one makes no sense, and HTTPError where nothing answers as it should.
    """
    import httpx

    body = msgspec.json.encode(list(faults))
    base = url if "://" in url else f"http://{url}"
    answer = httpx.post(base.rstrip("/") + FAULTS_PATH, content=body, timeout=deadline_seconds)
    if answer.status_code == httpx.codes.BAD_REQUEST:
        raise ValueError(answer.json()["error"]["message"])
    answer.raise_for_status()


def _method(path: str) -> str:
    """The last of `projects/P/datasets/D/tables/T/insertAll` that is not an id."""
    names = path.removeprefix("/upload").strip("/").split("/")[2::2]
    return names[-1] if names else path


async def _discard(_: Message) -> None:
    """Takes an answer that the caller shall not see."""


async def _answer(send: Send, status: int, body: dict[str, Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(body)})


async def _body(receive: Receive) -> bytes:
    body = b""
    while len(body) <= _MAX_FAULTS_BYTES:
        message = await receive()
        body += bytes(message.get("body", b""))
        if not message.get("more_body"):
            return body
    raise ValueError(f"the list of faults is longer than {_MAX_FAULTS_BYTES} bytes")
