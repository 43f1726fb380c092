"""What Pub/Sub refuses: resource names, sizes and ranges, as its documentation states them."""

from __future__ import annotations

import re
from typing import Any, NoReturn

import grpc
from google.pubsub_v1 import types

from service.local.grpc_server import StatusError

MAX_PUBLISH_MESSAGES = 1000
MAX_PUBLISH_BYTES = 10_000_000
MAX_ATTRIBUTES = 100
MAX_KEY_BYTES = 256
MAX_VALUE_BYTES = 1024
MAX_ORDERING_KEY_BYTES = 1024
MAX_ACK_REQUEST_BYTES = 524_288
MAX_PAGE = 1000
MIN_ACK_DEADLINE_SECONDS, MAX_ACK_DEADLINE_SECONDS = 10, 600
MIN_RETENTION_SECONDS, DEFAULT_RETENTION_SECONDS, MAX_RETENTION_SECONDS = 600, 7 * 86_400, 31 * 86_400

# Retention and expiration are kept and told, not acted on: messages stay until they are acknowledged.
_TOPIC_SETTINGS = frozenset({"name", "labels", "state"})
_UPDATABLE = frozenset({"ack_deadline_seconds", "labels", "message_retention_duration", "expiration_policy"})
_SUBSCRIPTION_SETTINGS = _UPDATABLE | {"name", "topic", "enable_message_ordering", "filter", "state"}

_ID = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9\-_.~+%]{2,254}\Z")
_PROJECT = re.compile(r"projects/[^/]+\Z")


def invalid(message: str) -> NoReturn:
    """Raises INVALID_ARGUMENT."""
    raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(name: str) -> StatusError:
    return StatusError(grpc.StatusCode.NOT_FOUND, f"Resource not found (resource={name.rpartition('/')[2]}).")


def already_exists(name: str) -> StatusError:
    short = name.rpartition("/")[2]
    return StatusError(
        grpc.StatusCode.ALREADY_EXISTS, f"Resource already exists in the project (resource={short})."
    )


def not_offered(what: str) -> StatusError:
    return StatusError(grpc.StatusCode.UNIMPLEMENTED, f"The local Pub/Sub server does not offer {what}.")


def check_name(name: str, collection: str) -> None:
    """Requires `projects/PROJECT/COLLECTION/ID`, where `collection` is `topics` or `subscriptions`."""
    project, separator, short = name.partition(f"/{collection}/")
    if not (separator and _PROJECT.match(project) and _ID.match(short)):
        invalid(f"Invalid [{collection}] name: (name={name}).")


def check_project(name: str) -> None:
    """Requires `projects/PROJECT`."""
    if not _PROJECT.match(name):
        invalid(f"Invalid project name: (name={name}).")


def check_range(what: str, value: float, low: int, high: int) -> None:
    """Requires low <= value <= high."""
    if not low <= value <= high:
        invalid(f"The value for {what} is out of range. You passed {value:g}, allowed is {low} to {high}.")


def new_topic(request: Any) -> Any:
    """The topic that a CreateTopic request makes; refuses settings that are not offered."""
    _refuse_settings(request, _TOPIC_SETTINGS)
    return types.Topic.pb()(name=request.name, labels=request.labels, state=types.Topic.State.ACTIVE)


def new_subscription(request: Any) -> Any:
    """The subscription that a CreateSubscription request makes, with the defaults of what it leaves out."""
    _refuse_settings(request, _SUBSCRIPTION_SETTINGS)
    subscription = types.Subscription.pb()()
    subscription.CopyFrom(request)
    subscription.state = types.Subscription.State.ACTIVE
    if not subscription.ack_deadline_seconds:
        subscription.ack_deadline_seconds = MIN_ACK_DEADLINE_SECONDS
    if not subscription.HasField("message_retention_duration"):
        subscription.message_retention_duration.seconds = DEFAULT_RETENTION_SECONDS
    _check_ranges(subscription)
    return subscription


def updated_subscription(current: Any, request: Any) -> Any:
    """The subscription `current` with the fields of an UpdateSubscription request's mask replaced."""
    if not request.update_mask.paths:
        invalid("The update_mask in the UpdateSubscriptionRequest must be set.")
    changed = types.Subscription.pb()()
    changed.CopyFrom(current)
    for path in request.update_mask.paths:
        if path not in _UPDATABLE:
            invalid(
                f"Invalid update_mask provided in the UpdateSubscriptionRequest: {path!r} cannot be changed."
            )
        changed.ClearField(path)
    masked = types.Subscription.pb()()
    request.update_mask.MergeMessage(request.subscription, masked)
    changed.MergeFrom(masked)
    return new_subscription(changed)


def _refuse_settings(request: Any, offered: frozenset[str]) -> None:
    for field, value in request.ListFields():
        empty = field.message_type is not None and not field.is_repeated and not value.ByteSize()
        if field.name not in offered and not empty:
            raise not_offered(f"{request.DESCRIPTOR.name}.{field.name}")


def _check_ranges(subscription: Any) -> None:
    check_range(
        "ack_deadline_seconds",
        subscription.ack_deadline_seconds,
        MIN_ACK_DEADLINE_SECONDS,
        MAX_ACK_DEADLINE_SECONDS,
    )
    check_range(
        "message_retention_duration",
        subscription.message_retention_duration.seconds,
        MIN_RETENTION_SECONDS,
        MAX_RETENTION_SECONDS,
    )


def check_publish(request: Any) -> None:
    """Checks what a publish request says beside its messages' contents."""
    check_name(request.topic, "topics")
    check_range("message_count", len(request.messages), 1, MAX_PUBLISH_MESSAGES)


def check_publish_size(request: Any, stored_bytes: int) -> None:
    """Checks the size of a request whose messages take `stored_bytes` when they are stamped.

    A stamp is longer than what the request adds to a message, so the size is measured only near the limit.
    """
    if stored_bytes > MAX_PUBLISH_BYTES - 1000 and request.ByteSize() > MAX_PUBLISH_BYTES:
        invalid(f"Request payload size exceeds the limit: {MAX_PUBLISH_BYTES} bytes.")


def check_message(message: Any, blob: bytes) -> None:
    """Checks one message; `blob` is its serialized form.

    Walking the attributes costs more than all else, so it is left out where none can be wrong.
    """
    data_bytes = len(message.data)
    if not (data_bytes or message.attributes):
        invalid("A message of the publish request is empty. Each must contain data or attributes.")
    if len(blob) - data_bytes <= MAX_KEY_BYTES and b"goog" not in blob:
        return
    if len(message.ordering_key.encode()) > MAX_ORDERING_KEY_BYTES:
        invalid(f"An ordering key is longer than {MAX_ORDERING_KEY_BYTES} bytes.")
    if len(message.attributes) > MAX_ATTRIBUTES:
        invalid(f"A message has more than {MAX_ATTRIBUTES} attributes.")
    for key, value in message.attributes.items():
        if key.startswith("goog"):
            invalid("An attribute key begins with `goog`.")
        if len(key.encode()) > MAX_KEY_BYTES:
            invalid(f"An attribute key is longer than {MAX_KEY_BYTES} bytes.")
        if len(value.encode()) > MAX_VALUE_BYTES:
            invalid(f"An attribute value is longer than {MAX_VALUE_BYTES} bytes.")


def page(names: list[str], page_size: int, page_token: str) -> tuple[list[str], str]:
    """The names of one page of a sorted listing, and the token of the next; the token is the last name."""
    if page_size < 0:
        invalid("page_size is negative.")
    size = min(page_size or MAX_PAGE, MAX_PAGE)
    rest = sorted(name for name in names if name > page_token)
    return rest[:size], rest[size - 1] if len(rest) > size else ""
