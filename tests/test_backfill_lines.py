"""The files and lines of a backfill: each line is read once under its number, whole, cut or damaged."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipeline.backfill.lines import MAX_LINE_BYTES, Segment, Unreadable, find_files, read, segments


def lines_of(path, segment_bytes=64_000_000):
    """Each line as (number, bytes), read segment by segment in any order."""
    parts = list(segments(str(path), path.stat().st_size, segment_bytes))
    found = [line for segment in reversed(parts) for line in read(segment)]
    assert all(line.attributes["file"] == str(path) for line in found)
    return sorted((int(line.attributes["line"]), line.data) for line in found)


def numbered(content):
    lines = content.split(b"\n")
    return list(enumerate(lines[:-1] if not lines[-1] else lines, start=1))


contents = st.lists(st.binary(max_size=12) | st.just(b"\r"), max_size=30).map(b"\n".join)


@given(contents.filter(lambda content: content[:2] != b"\x1f\x8b"), st.integers(1, 60))
def test_every_line_is_read_once_under_its_number_however_a_file_is_divided(content, segment_bytes):
    path = scratch("divided")
    path.write_bytes(content)
    assert lines_of(path, segment_bytes) == numbered(content)


@given(contents, st.integers(1, 60), st.integers(0, 30))
def test_a_gzip_file_is_the_same_as_its_content(content, segment_bytes, cut):
    path = scratch("packed")
    path.write_bytes(
        gzip.compress(content[:cut]) + gzip.compress(content[cut:])
    )  # members may follow members
    assert lines_of(path, segment_bytes) == numbered(content)


@given(st.data())
def test_a_damaged_gzip_file_gives_what_is_before_the_damage_and_one_dead_letter(data):
    content = b"".join(b"%d\n" % number for number in range(40))
    packed = bytearray(gzip.compress(content))
    place = data.draw(st.integers(2, len(packed) - 1))
    if data.draw(st.booleans()):
        del packed[place:]
    else:
        packed[place] ^= data.draw(st.integers(1, 255))
    path = scratch("damaged")
    path.write_bytes(packed)
    *lines, last = list(read(Segment(str(path))))
    if isinstance(last, Unreadable):
        assert last.reason == "file_corrupt"
        assert last.line == len(lines) + 1
    else:  # the header's time, name and system are nobody's concern
        lines.append(last)
        assert [line.data for line in lines] == content.split(b"\n")[:-1]
    assert all(not isinstance(line, Unreadable) for line in lines)


def scratch(name, _folder=[]):  # noqa: B006 - hypothesis has no fixtures of its own
    if not _folder:
        import tempfile

        _folder.append(tempfile.TemporaryDirectory())
    return Path(_folder[0].name) / name


def test_a_line_that_is_too_long_is_cut_and_its_neighbours_are_well(tmp_path):
    long = b"x" * (MAX_LINE_BYTES + 1)
    path = tmp_path / "long"
    path.write_bytes(b"1\n" + long + b"\n" + b"y" * MAX_LINE_BYTES + b"\n4")
    first, second, third, fourth = read(Segment(str(path)))
    assert (first.data, len(third.data), fourth.data) == (b"1", MAX_LINE_BYTES, b"4")
    assert (second.line, second.reason, second.payload) == (2, "line_too_long", long[:6_000_000])
    assert hashlib.sha256(long).hexdigest() in second.detail
    assert f"of {len(long)} bytes" in second.detail


def test_a_line_gets_an_id_of_file_number_and_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"same\nsame\n")
    ids = [line.attributes["event_id"] for name in "aab" for line in read(Segment(str(tmp_path / name)))]
    assert ids[:2] == ids[2:4]
    assert len(set(ids)) == 4


def test_a_pattern_names_files_in_the_order_of_their_names(tmp_path):
    for name in ("b.json", "a.json", "c.txt"):
        (tmp_path / name).write_bytes(b"12")
    assert find_files(f"{tmp_path}/*.json") == [(f"{tmp_path}/a.json", 2), (f"{tmp_path}/b.json", 2)]
