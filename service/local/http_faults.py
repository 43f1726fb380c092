"""The fault switch of the local BigQuery: outages of an HTTP server, turned on over the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec

from service.local.asgi import (
    MAX_INSERT_BYTES,
    App,
    BodyTooLargeError,
    Message,
    Receive,
    Scope,
    Send,
    answer,
    read_body,
    replay,
)
from service.local.faults import Fault, FaultSwitch

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


class HttpFault(Fault, frozen=True, forbid_unknown_fields=True):
    """A fault of an HTTP server; its `code` is an HTTP status as text, such as `503`.

    `reason` is BigQuery's word for the error, such as `quotaExceeded`. With `reset` the connection is
    closed instead of an answer. `refuse` hits no call, but refuses each row of an insertAll whose JSON
    contains the text, for good, and takes its neighbours. With `table` it leaves other tables alone.
    """

    reason: str = ""
    reset: bool = False
    refuse: str = ""
    table: str = ""

    def everywhere(self) -> Fault:
        """What of it every server knows."""
        return Fault(**{name: getattr(self, name) for name in Fault.__struct_fields__})


class HttpFaultSwitch(FaultSwitch):
    """The fault switch of an HTTP server."""

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

    `POST /signin/faults` takes a JSON list of `HttpFault`, `GET` tells how often each method was called.
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
            try:
                await self._call(scope, receive, send)
            except BodyTooLargeError as error:  # 500 would make clients send it again for ever
                errors = [{"reason": "uploadTooLarge", "domain": "global", "message": str(error)}]
                told = {"code": 413, "message": str(error), "errors": errors, "status": "INVALID_ARGUMENT"}
                await answer(send, 413, {"error": told})

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self.switch.draw(_method(scope["path"]))
        if fault is None:
            await self._app(scope, receive, send)
            return
        await asyncio.sleep(fault.delay_seconds)
        assert isinstance(fault, HttpFault)
        if fault.refuse and fault.table and f"/tables/{fault.table}/" not in scope["path"]:
            await self._app(scope, receive, send)
            return
        if fault.refuse:
            await self._refuse(fault.refuse.encode(), scope, receive, send)
            return
        fails = bool(fault.code or fault.reset)
        if fault.after or not fails:
            await self._app(scope, receive, _discard if fails else send)
        if fault.reset:
            # Half an answer makes the server close the connection.
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            raise ConnectionResetError("injected by the fault switch")
        if fault.code:
            message = "injected by the fault switch"
            errors = [{"reason": fault.reason, "message": message}] if fault.reason else []
            error = {"code": int(fault.code), "message": message, "errors": errors}
            await answer(send, int(fault.code), {"error": error})

    async def _refuse(self, text: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the rows on that do not contain the text, and answers that the others are invalid."""
        request = msgspec.json.decode(await read_body(receive, MAX_INSERT_BYTES))
        encode = msgspec.json.encode
        bad = [index for index, row in enumerate(request["rows"]) if text in encode(row["json"])]
        good = [row for index, row in enumerate(request["rows"]) if index not in set(bad)]
        if good:
            body = encode({**request, "rows": good})
            headers = [
                (name, str(len(body)).encode() if name == b"content-length" else value)
                for name, value in scope["headers"]
            ]
            taken: list[Message] = []

            async def keep(message: Message) -> None:
                taken.append(message)

            await self._app({**scope, "headers": headers}, replay(body), keep)
            if taken[0]["status"] != 200:  # the good rows were not taken either
                for message in taken:
                    await send(message)
                return
        error = {"reason": "invalid", "message": "injected by the fault switch"}
        await answer(send, 200, {"insertErrors": [{"index": index, "errors": [error]} for index in bad]})

    async def _control(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            await answer(send, 200, dict(self.switch.calls))
            return
        try:
            body = await read_body(receive, _MAX_FAULTS_BYTES)
            self.switch.set(msgspec.json.decode(body, type=list[HttpFault]))
        except (msgspec.MsgspecError, ValueError) as error:
            await answer(send, 400, {"error": {"code": 400, "message": str(error), "errors": []}})
        else:
            await answer(send, 200, {})


def set_http_faults(url: str, faults: Iterable[Fault], *, deadline_seconds: float = 5.0) -> None:
    """Sets the faults of the local BigQuery at `url`; an empty list ends them.

    Raises ValueError where one makes no sense, and HTTPError where nothing answers as it should.
    """
    import httpx

    body = msgspec.json.encode(list(faults))
    base = url if "://" in url else f"http://{url}"
    told = httpx.post(base.rstrip("/") + FAULTS_PATH, content=body, timeout=deadline_seconds)
    if told.status_code == httpx.codes.BAD_REQUEST:
        raise ValueError(told.json()["error"]["message"])
    told.raise_for_status()


def _method(path: str) -> str:
    """The last of `projects/P/datasets/D/tables/T/insertAll` that is not an id."""
    names = path.removeprefix("/upload").strip("/").split("/")[2::2]
    return names[-1] if names else path


async def _discard(_: Message) -> None:
    """Takes an answer that the caller shall not see."""
