"""The batching publisher: many callers, few Publish calls, an answer only when the event is safe."""

from service.publisher.lanes import Receipt
from service.publisher.publisher import MAX_CALLS, Publisher
from service.publisher.traced import TracedPublisher

__all__ = ["MAX_CALLS", "Publisher", "Receipt", "TracedPublisher"]
