"""Filters of subscriptions: which messages they select, and what is no filter."""

from __future__ import annotations

import grpc
import pytest

from service.local import message_filter
from tests.broker_world import (
    Setup,
    broker_setup,  # noqa: F401
    data,
    refusal,
)


@pytest.mark.parametrize(
    ("text", "matching"),
    [
        ("attributes:kind", "web mobile other"),
        ('attributes.kind = "web"', "web"),
        ('attributes.kind="web"', "web"),
        ('attributes.kind != "web"', "mobile other none"),
        ('hasPrefix(attributes.kind, "m")', "mobile"),
        ("NOT attributes:kind", "none"),
        ("-attributes:kind", "none"),
        ('attributes.kind = "web" OR attributes.kind = "mobile"', "web mobile"),
        ('attributes:kind AND NOT attributes.kind = "web"', "mobile other"),
        ('attributes:"kind" AND (attributes.kind = "web" OR hasPrefix(attributes."kind", "o"))', "web other"),
    ],
)
def test_a_filter_selects_by_attributes(text: str, matching: str) -> None:
    messages = {"web": {"kind": "web"}, "mobile": {"kind": "mobile"}, "other": {"kind": "other"}, "none": {}}
    matches = message_filter.parse(text)
    assert [name for name, attributes in messages.items() if matches(attributes)] == matching.split()


@pytest.mark.parametrize(
    "text",
    [
        "kind",
        "attributes",
        "attributes.kind",
        "attributes.kind = web",
        'attributes.kind > "a"',
        "attributes:kind AND attributes:a OR attributes:b",
        "(attributes:kind",
        "attributes:kind attributes:other",
        "NOT",
        "attributes:=",
        'hasPrefix(attributes.kind "m")',
        'attributes.kind = "unclosed',
        f'attributes.kind = "{"x" * 256}"',
    ],
)
def test_a_filter_that_does_not_parse_is_refused(setup: Setup, text: str) -> None:
    assert refusal(setup.subscribe, filter=text) is grpc.StatusCode.INVALID_ARGUMENT


def test_filtered_messages_go_only_where_they_match(setup: Setup) -> None:
    web = setup.subscribe("web", filter='attributes.kind = "web"')
    everything = setup.subscribe("everything")
    setup.publish(b"w", attributes={"kind": "web"})
    setup.publish(b"m", attributes={"kind": "mobile"})
    setup.publish(b"n")
    assert data(setup.pull(web)) == [b"w"]
    assert data(setup.pull(everything)) == [b"w", b"m", b"n"]
