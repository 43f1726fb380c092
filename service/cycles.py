"""uvicorn's cycle of a request and its answer, as the application and the connection use it beyond ASGI."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.errors import ProblemError

SCOPE_KEY = "signin.cycle"
_BREACH_KEY = "signin.breach"
_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode()) for status in HTTPStatus
}


def whole_body(scope: Scope) -> bytes | None:
    """The body of a request, where all of it is here already; None where it is not."""
    cycle: RequestResponseCycle | None = scope.get(SCOPE_KEY)
    if cycle is None or cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue:
        return None
    return bytes(cycle.body)


def answer(scope: Scope, response: Response, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Writes a whole response, with more headers, in one piece; False where it has to go the long way.

    The long way is uvicorn's `send`, which looks at each header anew and costs a quarter of a request.
    The body of the request must be here, and the response must have a Content-Length.
    """
    cycle: RequestResponseCycle | None = scope.get(SCOPE_KEY)
    if cycle is None or cycle.flow.write_paused or cycle.disconnected or not cycle.keep_alive:
        return False
    pieces = [_STATUS_LINES[response.status_code]]
    for name, value in (*cycle.default_headers, *response.raw_headers, *headers):
        pieces += (name, b": ", value, b"\r\n")
    pieces += (b"\r\n", bytes(response.body))
    cycle.response_started = True
    cycle.transport.write(b"".join(pieces))
    cycle.response_complete = True
    cycle.message_event.set()
    cycle.on_response()
    return True


def break_off(cycle: RequestResponseCycle, problem: ProblemError) -> bool:
    """Has the application learn, where it reads on, why the rest of a body does not come.

    It alone knows whether the request was acted upon already. False where no body is due to it any more.
    """
    if not cycle.more_body or cycle.response_complete:
        return False
    cycle.scope[_BREACH_KEY] = problem  # type: ignore[literal-required]
    cycle.message_event.set()
    return True


def breach(scope: Scope) -> ProblemError | None:
    """Why the rest of a body does not come; None while it may."""
    cycle: RequestResponseCycle | None = scope.get(SCOPE_KEY)
    # Of the cycle's scope, not of `scope`, which may be a copy that was made before.
    return cycle.scope.get(_BREACH_KEY) if cycle else None  # type: ignore[return-value]
