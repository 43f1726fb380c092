"""A subscription of the topic, followed message by message; raw protobuf over grpc.aio."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import quote

from service.clients import Clients

CALL_SECONDS = 10.0
PULL_SECONDS = 20.0  # a pull without messages ends so late
MOST_MESSAGES = 500  # of one pull
ACK_DEADLINE_SECONDS = 20
# Pub/Sub deletes a subscription that nobody has read for so long, if we were killed before we could.
ORPHAN_SECONDS = 24 * 3600
LEAST_RETENTION_SECONDS = 600
AWAY_SECONDS = 120.0
# Who reads a subscription takes its messages from every other reader: only what was made here is read.
OWN_LABEL = "signin-tail"
_LONGEST_PAUSE_SECONDS = 5.0
_TRANSIENT = frozenset(
    ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "RESOURCE_EXHAUSTED", "INTERNAL", "CANCELLED", "UNKNOWN")
)


class SubscriptionError(Exception):
    """Pub/Sub refused a call for good, or was away for too long; the message is a sentence."""


class Past(NamedTuple):
    """What a subscription has of the time before it is read; `topic_seconds` of it the topic retains."""

    is_new: bool
    topic_seconds: float
    keeps_acknowledged: bool


class Subscription:
    """One subscription, by its full name; for use within one event loop."""

    def __init__(self, clients: Clients, path: str) -> None:
        self.path = path
        self._clients = clients

    async def ensure(
        self, topic: str, *, temporary: bool, is_away: Callable[[str], object] = lambda _: None
    ) -> Past:
        """Makes the subscription unless it is there. Raises SubscriptionError where it is not for following.

        That is where it reads another topic, or has not the label of those that were made here: a job that
        reads it would miss what is read here. A temporary one keeps messages for ten minutes only, and
        Pub/Sub deletes it when it is left behind. `is_away` is that of `pull`.
        """
        types = _types()
        wanted = types.Subscription.pb()(
            name=self.path,
            topic=topic,
            ack_deadline_seconds=ACK_DEADLINE_SECONDS,
            labels={OWN_LABEL: "yes"},
        )
        if temporary:
            wanted.expiration_policy.ttl.seconds = ORPHAN_SECONDS
            wanted.message_retention_duration.seconds = LEAST_RETENTION_SECONDS
        is_new = True
        try:
            found = await self._persist("CreateSubscription", wanted, types.Subscription.pb(), is_away)
        except _RefusedError as error:
            if error.status != "ALREADY_EXISTS":
                raise SubscriptionError(f"{topic} cannot be subscribed to: {error}") from error
            request = types.GetSubscriptionRequest.pb()(subscription=self.path)
            found = await self._persist("GetSubscription", request, types.Subscription.pb(), is_away)
            if found.topic != topic:
                raise SubscriptionError(f"{self.path} reads {found.topic}, not {topic}") from error
            if OWN_LABEL not in found.labels:
                raise SubscriptionError(
                    f"{self.path} was not made by tail: a job that reads it would miss what tail reads. "
                    f"Name another one, or give it the label {OWN_LABEL} if nobody else reads it"
                ) from error
            is_new = False
        retained = found.topic_message_retention_duration.ToTimedelta().total_seconds()
        return Past(is_new, retained, found.retain_acked_messages)

    async def seek(self, moment: datetime, is_away: Callable[[str], object] = lambda _: None) -> None:
        """Counts what was published before `moment` as read, and what is kept from then on as unread."""
        types = _types()
        request = types.SeekRequest.pb()(subscription=self.path)
        request.time.FromDatetime(moment)
        await self._persist("Seek", request, types.SeekResponse.pb(), is_away)

    async def pull(self, most: int, is_away: Callable[[str], object] = lambda _: None) -> Sequence[Any]:
        """What has come, at most `most` messages; none after PULL_SECONDS without any.

        `acknowledge` those that are dealt with; the others come again. `is_away` is told the status when
        Pub/Sub does not answer; after AWAY_SECONDS of that, and where it refuses for good, SubscriptionError
        is raised.
        """
        types = _types()
        request = types.PullRequest.pb()(subscription=self.path, max_messages=min(most, MOST_MESSAGES))
        answer = await self._persist("Pull", request, types.PullResponse.pb(), is_away)
        return answer.received_messages if answer else ()

    async def acknowledge(self, ack_ids: Sequence[str]) -> None:
        types = _types()
        request = types.AcknowledgeRequest.pb()(subscription=self.path, ack_ids=ack_ids)
        await self._persist("Acknowledge", request)

    async def delete(self) -> None:
        """Removes the subscription. Raises SubscriptionError; one that is gone already is well."""
        types = _types()
        request = types.DeleteSubscriptionRequest.pb()(subscription=self.path)
        try:
            await self._call("DeleteSubscription", request, None, CALL_SECONDS)
        except _RefusedError as error:
            if error.status != "NOT_FOUND":
                raise

    async def _persist(
        self,
        method: str,
        request: Any,
        response: Any = None,
        is_away: Callable[[str], object] = lambda _: None,
    ) -> Any:
        """The answer, however often it has to be asked for; None for a pull that found nothing."""
        is_pull = method == "Pull"
        loop = asyncio.get_running_loop()
        until = loop.time() + AWAY_SECONDS
        pause = 0.1
        while True:
            try:
                return await self._call(method, request, response, PULL_SECONDS if is_pull else CALL_SECONDS)
            except _RefusedError as error:
                if is_pull and error.status == "DEADLINE_EXCEEDED":
                    return None
                if error.status not in _TRANSIENT or loop.time() + pause > until:
                    raise
                is_away(error.status)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads callers, hides nothing
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _call(self, method: str, request: Any, response: Any, seconds: float) -> Any:
        import grpc
        from google.protobuf import empty_pb2

        channel = await self._clients.pubsub_channel()
        stub = channel.unary_unary(
            f"/google.pubsub.v1.Subscriber/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=(response or empty_pb2.Empty).FromString,
        )
        metadata = (("x-goog-request-params", f"subscription={quote(self.path, safe='')}"),)
        try:
            return await stub(request, timeout=seconds, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise _RefusedError(error.code().name, error.details() or "") from error


class _RefusedError(SubscriptionError):
    """One call did not succeed."""

    def __init__(self, status: str, details: str) -> None:
        super().__init__(f"{status} {details}".strip())
        self.status = status


def _types() -> Any:
    """Pub/Sub's messages; importing them takes a moment."""
    from google.pubsub_v1 import types

    return types
