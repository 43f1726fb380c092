"""The protobuf encodings of the hot path, written by hand: message objects cost three times more.

Two rules of the wire format carry it: of a field that occurs twice a parser takes the last one, and
serialized messages put one after the other are the messages merged.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import timestamp_pb2

from service.local.backlog import Delivery

# A tag is field number << 3 | wire type; 2 is length-delimited, 0 is a varint.
_MESSAGE_ID = bytes((3 << 3 | 2,))  # in PubsubMessage
_PUBLISH_TIME = bytes((4 << 3 | 2,))
_RECEIVED_MESSAGES = bytes((1 << 3 | 2,))  # in PullResponse and in StreamingPullResponse
_ACK_ID = bytes((1 << 3 | 2,))  # in ReceivedMessage
_MESSAGE = bytes((2 << 3 | 2,))
_DELIVERY_ATTEMPT = bytes((3 << 3 | 0,))


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def publish_time_field(now: float) -> bytes:
    """The field `publish_time` of a PubsubMessage; `now` is in seconds since the epoch."""
    seconds = int(now)
    # At least a nanosecond, so that the field is there and overrides what the publisher may have set.
    nanos = max(int((now - seconds) * 1e9), 1)
    time: bytes = timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos).SerializeToString()
    return _PUBLISH_TIME + _varint(len(time)) + time


def stamped(blob: bytes, number: int, publish_time: bytes) -> bytes:
    """The serialized PubsubMessage `blob` with its id and the field `publish_time`."""
    digits = b"%d" % number
    return b"%b%b%c%b%b" % (blob, _MESSAGE_ID, len(digits), digits, publish_time)


def received_messages(deliveries: Iterable[Delivery]) -> bytes:
    """A serialized PullResponse, or the same field of a StreamingPullResponse. Ack ids are short ASCII.

    The delivery attempt is always told; the real service tells it only with a dead-letter policy.
    """
    parts: list[bytes] = []
    for delivery in deliveries:
        ack_id = delivery.ack_id.encode("ascii")
        blob = delivery.message.blob
        head = b"%b%c%b%b%b" % (_ACK_ID, len(ack_id), ack_id, _MESSAGE, _varint(len(blob)))
        tail = _DELIVERY_ATTEMPT + _varint(delivery.attempt)
        length = len(head) + len(blob) + len(tail)
        parts += (_RECEIVED_MESSAGES, _varint(length), head, blob, tail)
    return b"".join(parts)
