"""The journal of the Pub/Sub broker: what it gives back after each kind of end."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import msgspec
import pytest
from google.pubsub_v1 import types

from service.local.grpc_server import StatusError
from service.local.journal import Journal, JournalError, replay
from service.local.pubsub_records import (
    Acknowledged,
    IdsReserved,
    Published,
    State,
    SubscriptionSet,
    TopicCreated,
)

TOPIC = "projects/signin-local/topics/signins"
NAME = "projects/signin-local/subscriptions/first"
BASICS = [
    IdsReserved(100),
    TopicCreated(types.Topic.pb()(name=TOPIC).SerializeToString()),
    SubscriptionSet(types.Subscription.pb()(name=NAME, topic=TOPIC).SerializeToString()),
]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path)
    journal.append(BASICS)
    yield journal
    journal.close()


def published(first: int, count: int = 1, size: int = 10) -> Published:
    return Published([NAME], list(range(first, first + count)), [bytes(size)] * count)


def file_of(directory: Path) -> Path:
    return directory / "pubsub.journal"


def test_what_was_appended_is_there_without_any_closing(journal: Journal, tmp_path: Path) -> None:
    journal.append([published(1, 3)])
    journal.append([Acknowledged(NAME, [2])])
    state = replay(file_of(tmp_path))
    assert list(state.unacknowledged[NAME]) == [1, 3]
    assert state.topics[TOPIC].name == TOPIC
    assert state.ids_below == 100


@pytest.mark.parametrize("cut", [1, 7, 8, 20])
def test_a_last_record_that_is_cut_off_is_left_out(tmp_path: Path, cut: int) -> None:
    first = Journal(tmp_path)
    first.append([*BASICS, published(1)])
    first.append([published(2, size=40)])
    first.close()
    os.truncate(file_of(tmp_path), file_of(tmp_path).stat().st_size - cut)
    second = Journal(tmp_path)
    assert second.state is not None
    assert list(second.state.unacknowledged[NAME]) == [1]
    second.append([published(3)])
    second.close()
    assert list(replay(file_of(tmp_path)).unacknowledged[NAME]) == [1, 3]


def test_damage_in_the_middle_is_told_and_not_skipped(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.append([*BASICS, published(1, size=100), published(2)])
    first.close()
    content = bytearray(file_of(tmp_path).read_bytes())
    content[-60] ^= 1
    file_of(tmp_path).write_bytes(content)
    with pytest.raises(JournalError, match="damaged at byte"):
        Journal(tmp_path)
    assert file_of(tmp_path).read_bytes() == content


def test_zeros_at_the_end_are_what_a_power_failure_leaves(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.append([*BASICS, published(1)])
    first.close()
    with file_of(tmp_path).open("ab") as file:
        file.write(bytes(100))
    second = Journal(tmp_path)
    assert second.state is not None
    assert list(second.state.unacknowledged[NAME]) == [1]
    second.close()


def test_a_damaged_length_does_not_take_the_records_behind_it_away(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.append(BASICS)
    damaged = first.size
    first.append([published(1), published(2)])
    first.close()
    content = bytearray(file_of(tmp_path).read_bytes())
    content[damaged + 3] ^= 1  # the highest byte of the length of the first message's record
    file_of(tmp_path).write_bytes(content)
    second = Journal(tmp_path)
    assert second.state is not None
    assert not second.state.unacknowledged[NAME]
    second.close()
    assert (tmp_path / "pubsub.cut-off").read_bytes() == content


@pytest.mark.parametrize(
    "data", [b"\xc1", msgspec.msgpack.encode(Acknowledged("projects/p/subscriptions/none", [1]))]
)
def test_a_whole_record_without_sense_is_told(tmp_path: Path, data: bytes) -> None:
    Journal(tmp_path).close()
    with file_of(tmp_path).open("ab") as file:
        file.write(struct.pack("<II", len(data), zlib.crc32(data)) + data)
    with pytest.raises(JournalError, match="damaged at byte"):
        Journal(tmp_path)


def test_a_file_of_another_kind_is_told(tmp_path: Path) -> None:
    file_of(tmp_path).write_bytes(b"something else entirely, and long enough")
    with pytest.raises(JournalError, match="not a journal of this version"):
        Journal(tmp_path)


def test_a_second_journal_in_one_directory_is_refused_until_the_first_is_closed(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    with pytest.raises(
        JournalError, match=rf"in use by another local Pub/Sub server \(process {os.getpid()}\)"
    ):
        Journal(tmp_path)
    first.close()
    Journal(tmp_path).close()


def test_a_mostly_dead_file_is_written_anew_while_it_is_in_use(tmp_path: Path) -> None:
    journal = Journal(tmp_path, compact_above_bytes=10_000)
    state = State()
    journal.follow(lambda: state)
    largest = 0
    for number in range(1, 200):
        records = [published(number, size=1000), Acknowledged(NAME, [number - 5])]
        for record in [*BASICS, *records] if number == 1 else records:
            journal.append([record])
            state.apply(record)
        largest = max(largest, file_of(tmp_path).stat().st_size)
        assert journal.size == file_of(tmp_path).stat().st_size
    journal.close()
    assert largest < 30_000
    assert replay(file_of(tmp_path)) == state
    assert list(state.unacknowledged[NAME]) == [195, 196, 197, 198, 199]
    assert not file_of(tmp_path).with_suffix(".new").exists()


def test_the_start_compacts_the_file(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.append([*BASICS, published(1, 500, size=100), Acknowledged(NAME, list(range(1, 500)))])
    size = first.size
    first.close()
    second = Journal(tmp_path)
    assert second.size < size / 50
    second.close()
    assert list(replay(file_of(tmp_path)).unacknowledged[NAME]) == [500]


def test_a_full_disk_refuses_the_record_whole_and_the_next_one_is_good(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def half(file: int, data: memoryview) -> int:
        if len(data) < 500:
            raise OSError(28, "No space left on device")
        return write(file, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(StatusError, match="No space left") as caught:
            journal.append([published(1, size=2000)])
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    journal.append([published(2)])
    assert list(replay(file_of(tmp_path)).unacknowledged[NAME]) == [2]


def test_a_disk_too_full_to_compact_on_takes_what_still_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, compact_above_bytes=1000)
    state = State()
    journal.follow(lambda: state)
    for record in [*BASICS, published(1, size=2000)]:
        journal.append([record])
        state.apply(record)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        journal.append([published(2)])
    assert not file_of(tmp_path).with_suffix(".new").exists()
    journal.close()
    assert list(replay(file_of(tmp_path)).unacknowledged[NAME]) == [1, 2]


def refuse(*_: object) -> None:
    raise OSError(28, "No space left on device")
