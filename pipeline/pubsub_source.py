"""Reading from Pub/Sub on Dataflow and on Beam's DirectRunner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import apache_beam as beam
from apache_beam import coders
from apache_beam.io.gcp.pubsub import ReadFromPubSub
from google.pubsub_v1.types import PubsubMessage

_Message = PubsubMessage.pb()


class RawMessage:
    """The element type of raw protobuf `PubsubMessage`s; their own class cannot be pickled by name."""


class RawMessageCoder(coders.Coder):  # type: ignore[misc]
    """Raw messages as their bytes. Beam samples sizes by encoding, so that even fused steps use it."""

    def encode(self, value: Any) -> bytes:
        return bytes(value.SerializeToString())

    def decode(self, encoded: bytes) -> Any:
        return _Message.FromString(encoded)

    def is_deterministic(self) -> bool:
        return False  # a map of attributes has no order


coders.registry.register_coder(RawMessage, RawMessageCoder)


class ReadMessages(ReadFromPubSub):  # type: ignore[misc]
    """`ReadFromPubSub(with_attributes=True)`, whose elements are raw protobuf messages on Dataflow.

    The stock decoding goes through proto-plus: 18 to 25 microseconds a message against 0.5. The
    DirectRunner puts a reader of its own in this place, whose elements are Beam's `PubsubMessage`.
    """

    def __init__(
        self,
        *,
        topic: str | None,
        subscription: str | None,
        id_label: str | None,
        timestamp_attribute: str | None,
    ) -> None:
        super().__init__(
            topic=topic,
            subscription=subscription,
            id_label=id_label,
            with_attributes=True,
            timestamp_attribute=timestamp_attribute,
        )
        # The source keeps asking for whole messages; only the stock decoding step is switched off.
        self.with_attributes = False

    def expand_continued(self, pcoll: Any) -> Any:
        """From serialized messages to messages."""
        serialized = super().expand_continued(pcoll)
        return serialized | "Parse messages" >> beam.Map(_parse).with_output_types(RawMessage)


def new_message(data: bytes, attributes: Mapping[str, str]) -> Any:
    """A raw message that never was in Pub/Sub: without an id and a time of publication."""
    return _Message(data=data, attributes=attributes)


def _parse(serialized: bytes) -> Any:
    return _Message.FromString(serialized)
