"""What each Publish call takes from the lane of single events and from that of large groups."""

from __future__ import annotations

import pytest

from service.publisher.lanes import SMALL_GROUP, Event, Group, Lanes

MANY = 2000


def filled(lanes, size=10):
    """The lanes with many single events in one and a large group in the other, each of `size` bytes."""
    group = Group(MANY)
    group.waiting.extend(Event(b"", {}, size, 0.0, None, group, index) for index in range(MANY))
    lanes.add(group)
    lanes.singles.extend(Event(b"", {}, size, 0.0, None) for _ in range(MANY))
    lanes.count += MANY
    lanes.bytes += MANY * size
    assert MANY > SMALL_GROUP
    return lanes


def counts(batch):
    """How many single events and how many of a group are in the batch."""
    from_group = sum(event.group is not None for event in batch)
    return len(batch) - from_group, from_group


@pytest.mark.parametrize(
    ("most", "expected"), [(2, (1, 1)), (3, (2, 1)), (4, (3, 1)), (100, (75, 25)), (1000, (750, 250))]
)
async def test_a_call_has_room_for_both_lanes_however_few_messages_it_takes(most, expected):
    lanes = filled(Lanes(most, 1_000_000))
    assert counts(lanes.take(with_groups=True)) == expected
    assert counts(lanes.take(with_groups=False)) == (most, 0)


async def test_calls_of_one_message_are_the_groups_where_they_may_be_and_else_the_single_events():
    lanes = filled(Lanes(1, 1_000_000))
    assert counts(lanes.take(with_groups=True)) == (0, 1)
    assert counts(lanes.take(with_groups=False)) == (1, 0)


async def test_a_call_has_room_for_both_lanes_where_its_bytes_bound_it():
    lanes = filled(Lanes(1000, 10_000), size=100)
    assert counts(lanes.take(with_groups=True)) == (75, 25)
    assert counts(lanes.take(with_groups=False)) == (100, 0)


@pytest.mark.parametrize("most", [1, 2, 3, 4, 1000])
async def test_everything_leaves_and_is_counted_out(most):
    lanes = filled(Lanes(most, 10_000), size=100)
    taken = 0
    while batch := lanes.take(with_groups=True):
        assert len(batch) <= most
        taken += len(batch)
    assert taken == 2 * MANY
    assert (lanes.count, lanes.bytes) == (0, 0)
