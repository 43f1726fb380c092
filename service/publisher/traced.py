"""The publisher where spans are wanted: the messages of a request are one span, and carry it with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from service.breaker import Breaker
from service.config import Settings
from service.errors import ProblemError
from service.outbox import Outbox
from service.publisher.lanes import Receipt
from service.publisher.publisher import Publisher
from service.topic import Message, Topic

if TYPE_CHECKING:
    from service.spans import Attributes, Traces

_CANCELLED = "cancelled"


class TracedPublisher(Publisher):
    """A Publisher with a span around each request's messages, until they are safe or refused."""

    def __init__(
        self, topic: Topic, outbox: Outbox, breaker: Breaker, settings: Settings, traces: Traces
    ) -> None:
        super().__init__(topic, outbox, breaker, settings)
        self._traces = traces

    async def publish(self, data: bytes, attributes: Mapping[str, str]) -> Receipt:
        span = self._traces.sending(1)
        error_type = _CANCELLED
        told: Attributes = {}
        try:
            receipt = await super().publish(data, span.carried(attributes))
            error_type = ""
        except ProblemError as problem:
            error_type = problem.problem_code
            raise
        else:
            told["signin.status"] = receipt.status
            if receipt.message_id:
                told["messaging.message.id"] = receipt.message_id
            return receipt
        finally:
            span.end(told, error_type)

    async def publish_all(self, messages: Sequence[Message]) -> list[Receipt | ProblemError]:
        span = self._traces.sending(len(messages))
        error_type = _CANCELLED
        told: Attributes = {}
        try:
            outcomes = await super().publish_all(
                [(data, span.carried(attributes)) for data, attributes in messages]
            )
            failed = [each.problem_code for each in outcomes if isinstance(each, ProblemError)]
            told["signin.failed"] = len(failed)
            error_type = failed[0] if failed else ""
        except ProblemError as problem:
            error_type = problem.problem_code
            raise
        else:
            return outcomes
        finally:
            span.end(told, error_type)
