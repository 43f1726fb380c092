"""A wire between one replica and Dataflow that notes who called what, and when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.cloud import dataflow_v1beta3 as df

LIST, UPDATE, LAUNCH = "ListJobs", "UpdateJob", "LaunchFlexTemplate"


@dataclass(frozen=True)
class Call:
    """A call as it came; `at` in seconds since 1970, `request` is serialized."""

    at: float
    replica: str
    method: str
    request: bytes

    @property
    def is_of_a_tick(self) -> bool:
        """Whether only the reconciler asks this: for all active jobs of a region."""
        if self.method != LIST:
            return False
        request = df.ListJobsRequest.deserialize(self.request)
        return request.filter == df.ListJobsRequest.Filter.ACTIVE

    @property
    def drains(self) -> bool:
        if self.method != UPDATE:
            return False
        job = df.UpdateJobRequest.deserialize(self.request).job
        return job.requested_state == df.JobState.JOB_STATE_DRAINED


class _Forwarder(grpc.GenericRpcHandler):
    def __init__(self, channel: grpc.aio.Channel, replica: str, log: list[Call]) -> None:
        self._channel = channel
        self._replica = replica
        self._log = log

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        async def forward(request: bytes, context: Any) -> bytes:
            method = details.method.rpartition("/")[2]
            self._log.append(Call(time.time(), self._replica, method, request))
            call = self._channel.unary_unary(details.method)(request, timeout=context.time_remaining())
            try:
                return await call
            except asyncio.CancelledError:  # the replica has gone
                call.cancel()
                raise
            except grpc.aio.AioRpcError as error:
                context.set_trailing_metadata(tuple(error.trailing_metadata() or ()))
                await context.abort(error.code(), error.details() or "")
                raise

        return grpc.unary_unary_rpc_method_handler(forward)


@asynccontextmanager
async def tapped(target: str, replica: str, log: list[Call]) -> AsyncIterator[str]:
    """Yields an address that is Dataflow at `target`, and notes in `log` what goes through."""
    async with grpc.aio.insecure_channel(target) as channel:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((_Forwarder(channel, replica, log),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(0.5)
