"""A publish request on its way into the backlogs: stamped, checked, and sorted by who takes what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.local import pubsub_rules, wire
from service.local.backlog import Message
from service.local.message_filter import Filter


def stamp(request: Any, first_id: int, now: float) -> list[Message]:
    """Gives each message its id and publish time, and takes it out of the request's memory.

    `now` is in seconds since the epoch. Raises INVALID_ARGUMENT for a message that breaks a limit.
    """
    publish_time = wire.publish_time_field(now)
    messages = []
    for number, message in enumerate(request.messages, first_id):
        blob = message.SerializeToString()
        pubsub_rules.check_message(message, blob)
        messages.append(Message(number, wire.stamped(blob, number, publish_time), message.ordering_key, now))
    return messages


def route(
    request: Any, messages: Sequence[Message], filters: Mapping[str, Filter | None]
) -> dict[tuple[str, ...], list[Message]]:
    """The stamped messages of a request by the names of all subscriptions that take them.

    `filters` has every subscription of the topic; messages that none takes are left out.
    """
    if not filters:
        return {}
    if not any(filters.values()):
        return {tuple(filters): list(messages)}
    routes: dict[tuple[str, ...], list[Message]] = {}
    for message, source in zip(messages, request.messages, strict=True):
        names = tuple(name for name, matches in filters.items() if not matches or matches(source.attributes))
        if names:
            routes.setdefault(names, []).append(message)
    return routes
