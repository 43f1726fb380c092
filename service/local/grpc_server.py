"""What the local gRPC servers share: handlers from proto types, faults, readiness, ordered stop."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, NoReturn, TypeAlias, TypeVar

import grpc
import grpc.aio

from service.local.faults import Fault, FaultSwitch

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Answer = TypeVar("Answer")
_log = logging.getLogger(__name__)

_OPTIONS = [
    ("grpc.so_reuseport", 0),  # otherwise two servers share one port in silence
    ("grpc.max_receive_message_length", 1 << 26),
    ("grpc.max_send_message_length", 1 << 26),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
]
STOP_GRACE_SECONDS = 1.0


class StatusError(Exception):
    """A gRPC answer other than OK; `details` are protobuf messages for the rich status."""

    def __init__(self, code: grpc.StatusCode, message: str, details: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


class Method(NamedTuple):
    """One unary method: the coroutine `(request, context) -> response` and its raw protobuf types."""

    call: Callable[[Any, Context], Awaitable[Any]]
    request: Any
    response: Any


class Serialized:
    """The response type of a method whose coroutine answers with bytes that are serialized already."""

    @staticmethod
    def SerializeToString(answer: bytes) -> bytes:  # noqa: N802 - the name that protobuf types give it
        return answer


async def abort(context: Context, error: StatusError) -> NoReturn:
    """Ends the call with the error's status, rich details included."""
    if error.details:
        from google.rpc import status_pb2
        from grpc_status import rpc_status

        status = status_pb2.Status(code=error.code.value[0], message=error.message)
        for detail in error.details:
            status.details.add().Pack(detail)
        context.set_trailing_metadata(rpc_status.to_status(status).trailing_metadata)
    await context.abort(error.code, error.message)
    raise AssertionError("abort returned")


async def guarded(
    name: str, context: Context, faults: FaultSwitch, call: Callable[[], Awaitable[Answer]]
) -> Answer:
    """Answers one call of method `name`, with the fault switch around it.

    A Python error is told as INTERNAL and logged: gRPC's own UNKNOWN is retried for ever by clients.
    """
    fault = faults.draw(name)

    async def effect() -> Answer:
        if fault and not fault.after:
            await strike(fault, name, faults)
        return await call()

    try:
        answer = await (asyncio.shield(asyncio.ensure_future(effect())) if fault and fault.late else effect())
        if fault and fault.after:
            await strike(fault, name, faults)
    except StatusError as error:
        await abort(context, error)
    except grpc.aio.AbortError:
        raise
    except Exception:  # noqa: BLE001 - the last frame before gRPC makes it UNKNOWN
        _log.exception("%s failed", name)
        await context.abort(
            grpc.StatusCode.INTERNAL, f"{name} failed; the cause is in the local server's log."
        )
    return answer


async def strike(fault: Fault, name: str, faults: FaultSwitch) -> None:
    """Waits and raises StatusError as the fault says; returns only where the call may go on."""
    await faults.wait(fault, name)
    if fault.code:
        raise StatusError(grpc.StatusCode[fault.code], fault.message or "injected by the fault switch")


def unary_handlers(
    service: str, methods: Mapping[str, Method], faults: FaultSwitch
) -> grpc.GenericRpcHandler:
    """A generic handler for `service` (full protobuf name) with the fault switch before each method."""

    def handler(name: str, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        async def call(request: Any, context: Context) -> Any:
            return await guarded(name, context, faults, lambda: method.call(request, context))

        return grpc.unary_unary_rpc_method_handler(
            call,
            request_deserializer=method.request.FromString,
            response_serializer=method.response.SerializeToString,
        )

    faults.know(methods)
    return grpc.method_handlers_generic_handler(
        service, {name: handler(name, method) for name, method in methods.items()}
    )


async def start_server(
    handlers: list[grpc.GenericRpcHandler], host: str, port: int
) -> tuple[grpc.aio.Server, str]:
    """Starts a server on loopback; returns it with its address `host:port`. Raises OSError if taken."""
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers(tuple(handlers))
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"{host}:{port} cannot be listened on: is another program using it?") from error
    await server.start()
    return server, f"{host}:{bound}"


def announce(address: str, **besides: str) -> None:
    """Tells the parent, as one JSON line on standard output, that the server answers at `address`.

    `besides` are addresses of what else it serves.
    """
    sys.stdout.write(json.dumps({"ready": address, "besides": besides}) + "\n")
    sys.stdout.flush()


async def until_signal() -> None:
    """Returns when SIGTERM or SIGINT arrives."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
