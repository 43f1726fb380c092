"""Reading files: by many workers on Dataflow, and one batch of lines at a time on one machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.metrics import Metrics

from pipeline.backfill.lines import SEGMENT_BYTES, Segment, Unreadable, find_files, read, segments
from pipeline.local_engine import batch_source
from pipeline.pubsub_source import RawMessage
from transforms.bigquery_rows import dead_letter_row
from transforms.pubsub_message import DEAD_LETTERS, METRICS_NAMESPACE

MESSAGES = "messages"


class ReadFiles(beam.PTransform):  # type: ignore[misc]
    """The lines of all files that a glob pattern names: raw messages, and `DEAD_LETTERS` for the rest.

    Files are found when the job runs. Large ones are divided between workers; one that is compressed
    cannot be. Fails where the pattern names no file.
    """

    def __init__(self, files: str, origin: dict[str, str], *, segment_bytes: int = SEGMENT_BYTES) -> None:
        super().__init__()
        self._files = files
        self._segment_bytes = segment_bytes
        self._origin = origin

    def expand(self, pbegin: Any) -> Any:
        return (
            pbegin
            | "Begin" >> beam.Create([self._files])
            | "Find files" >> beam.FlatMap(_find).with_output_types(tuple[str, int])
            | "Divide the work of looking at them" >> beam.Reshuffle()
            | "Divide files" >> beam.FlatMap(_divide, self._segment_bytes)
            | "Divide the work of reading them" >> beam.Reshuffle()
            | "Read lines" >> _lines(_ReadLinesFn(self._origin))
        )


class ReadLeasedLines(beam.PTransform):  # type: ignore[misc]
    """Stands where `ReadFiles` stands on Dataflow; what it emits is the lease of the local engine."""

    def __init__(self, origin: dict[str, str]) -> None:
        super().__init__()
        self._origin = origin

    def expand(self, pbegin: Any) -> Any:
        return (
            pbegin
            | "Begin a batch" >> beam.Impulse()
            | "Emit its lines" >> _lines(_EmitLeasedFn(self._origin))
        )


def _lines(fn: _LinesFn) -> Any:
    typed = beam.ParDo(fn).with_output_types(RawMessage)
    return typed.with_outputs(DEAD_LETTERS, main=MESSAGES)


def _find(pattern: str) -> list[tuple[str, int]]:
    found = find_files(pattern)
    if not found:
        raise FileNotFoundError(f"No file is named {pattern}")
    return found


def _divide(file: tuple[str, int], segment_bytes: int) -> Iterator[tuple[Any, ...]]:
    for segment in segments(*file, segment_bytes):
        yield tuple(segment)


class _LinesFn(beam.DoFn):  # type: ignore[misc]
    """Sorts lines from what cannot be read, and counts the latter for each bundle."""

    def __init__(self, origin: dict[str, str]) -> None:
        super().__init__()
        self._origin = origin
        self._counts: Counter[str] = Counter()

    def start_bundle(self) -> None:
        self._counts = Counter()

    def process(self, element: Any) -> Iterator[Any]:
        for line in self.lines(element):
            if isinstance(line, Unreadable):
                self._counts["dead_letters"] += 1
                self._counts[f"dead_letters_{line.reason}"] += 1
                yield pvalue.TaggedOutput(DEAD_LETTERS, self._dead_letter(line))
            else:
                yield line

    def finish_bundle(self) -> None:
        for name, count in self._counts.items():
            Metrics.counter(METRICS_NAMESPACE, name).inc(count)

    def lines(self, element: Any) -> Iterator[Any]:
        """The lines that the element stands for."""
        raise NotImplementedError

    def _dead_letter(self, line: Unreadable) -> dict[str, Any]:
        return dead_letter_row(
            stage="decode",
            reason=line.reason,
            detail=line.detail,
            payload=line.payload,
            attributes=line.attributes(),
            **self._origin,
        )


class _ReadLinesFn(_LinesFn):
    def lines(self, element: tuple[Any, ...]) -> Iterator[Any]:
        return read(Segment(*element))


class _EmitLeasedFn(_LinesFn):
    def lines(self, element: bytes) -> Iterator[Any]:  # noqa: ARG002 - the impulse has nothing to say
        return iter(batch_source.leased())
