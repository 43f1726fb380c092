"""What one message costs from its bytes to a row: our step against the article's chain, on Beam's worker.

`python -m tests.benchmarks.transform_speed [--elements N] [--rounds N] [--profile] [--json FILE]`. The
contenders run in turns on Beam's own SDK harness (FnApiRunner), each as source, chain, and a sink that
counts; the cost of source and sink alone is taken off. The median of the rounds counts, in CPU time.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from google.pubsub_v1 import types

from pipeline.pubsub_source import RawMessage as RawMessageType
from transforms.bigquery_delivery import WritePolicy
from transforms.bigquery_rows import TableRef
from transforms.bigquery_write import WriteSigninsFn
from transforms.bigquery_writer import Destination
from transforms.pubsub_message import DEAD_LETTERS, Extractor, MessageExtractingFn

RawMessage = types.PubsubMessage.pb()
BODIES = {
    "article": b'{"userid": "user-%06d", "date": "2017-10-17T20:57:17.338320"}',
    "canonical": (
        b'{"userid":"user-%06d","date":"2017-10-17T20:57:17.338320Z",'
        b'"event_id":"01890a5d-ac96-774b-bcce-b302099a8057"}'
    ),
}
# The elements of the run that is under way: the embedded worker runs in this process.
_elements: list[Any] = []
_seen = 0


class SourceFn(beam.DoFn):
    def process(self, _: bytes) -> Iterator[Any]:
        yield from _elements


class SinkFn(beam.DoFn):
    """Counts, so that nobody can be quick by losing something."""

    def process(self, _: Any) -> None:
        global _seen  # noqa: PLW0603 - the one place where the worker meets the benchmark
        _seen += 1


class ArticleFn(beam.DoFn):
    """The step of the article: no check, no dead letter."""

    def process(self, element: str) -> Iterator[dict[str, Any]]:
        message = json.loads(element)
        yield {"userid": message["userid"], "date": message["date"]}


def bare(elements: Any) -> None:
    _ = elements | "Sink" >> beam.ParDo(SinkFn())


def article(elements: Any) -> None:
    _ = (
        elements
        | "Decode" >> beam.Map(lambda data: data.decode("utf-8"))
        | "Parse" >> beam.ParDo(ArticleFn())
        | "Sink" >> beam.ParDo(SinkFn())
    )


class CountingFn(WriteSigninsFn):
    """The production step up to the batch from which a request is made: there the rows are counted."""

    def write(self, rows: list[dict[str, Any]]) -> dict[int, str]:
        global _seen  # noqa: PLW0603 - see SinkFn
        _seen += len(rows)
        return {}


def fused(elements: Any) -> None:
    """What the pipeline runs: from the message to the batch in one step."""
    destination = Destination(TableRef("benchmark", "signin", "rows"))
    letters = elements | "Extract" >> beam.ParDo(CountingFn(destination, WritePolicy(), Extractor()))
    _ = letters | "Sink of letters" >> beam.ParDo(SinkFn())


def stepwise(elements: Any) -> None:
    """The step that gives each row to another step, as the stock ways to write need it."""
    outputs = elements | "Extract" >> beam.ParDo(MessageExtractingFn()).with_outputs(
        DEAD_LETTERS, main="rows"
    )
    _ = outputs.rows | "Sink" >> beam.ParDo(SinkFn())
    _ = outputs[DEAD_LETTERS] | "Sink of letters" >> beam.ParDo(SinkFn())


def run(chain: Callable[[Any], None], elements: list[Any]) -> float:
    """CPU seconds of one pipeline over the elements."""
    global _seen  # noqa: PLW0603 - see SinkFn
    pipeline = beam.Pipeline(runner=FnApiRunner())
    kind = bytes if isinstance(elements[0], bytes) else RawMessageType
    chain(pipeline | beam.Impulse() | "Source" >> beam.ParDo(SourceFn()).with_output_types(kind))
    _elements[:] = elements
    _seen = 0
    begun = time.process_time()
    pipeline.run().wait_until_finish()
    seconds = time.process_time() - begun
    if len(elements) != _seen:
        raise SystemExit(f"{_seen} of {len(elements)} elements came out")
    return seconds


def raw_messages(bodies: list[bytes]) -> list[Any]:
    """The same bodies as the Pub/Sub messages that the pipeline really reads."""
    messages = [RawMessage(data=body, message_id=str(number)) for number, body in enumerate(bodies)]
    for number, message in enumerate(messages):
        message.publish_time.seconds = 1_700_000_000 + number // 1000
        message.attributes["event_id"] = str(number)
    return messages


def measure(form: str, count: int, rounds: int) -> dict[str, float]:
    """Microseconds of CPU for each element and chain, source and sink taken off."""
    bodies = [BODIES[form] % number for number in range(count)]
    messages = raw_messages(bodies)
    contenders: dict[str, tuple[Callable[[Any], None], list[Any]]] = {
        "bare": (bare, bodies),
        "bare_messages": (bare, messages),
        "article": (article, bodies),
        "fused": (fused, bodies),
        "fused_messages": (fused, messages),
        "stepwise": (stepwise, bodies),
    }
    for chain, elements in contenders.values():
        run(chain, elements[:1000])  # warm
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (chain, elements) in contenders.items():
            seconds[name].append(run(chain, elements))
    micros = {name: 1e6 * statistics.median(values) / count for name, values in seconds.items()}
    # A fused step has no sink of rows behind it: what it hands on to the sink is what it saves.
    bases = {"fused_messages": "bare_messages"}
    return {
        name: value if name.startswith("bare") else value - micros[bases.get(name, "bare")]
        for name, value in micros.items()
    }


def profile(form: str, count: int) -> None:
    """Where the time of our step goes, function by function."""
    bodies = [BODIES[form] % number for number in range(count)]
    profiler = cProfile.Profile()
    extractor = Extractor()
    messages = raw_messages(bodies)
    profiler.runcall(lambda: [extractor.extract(message) for message in messages])
    pstats.Stats(profiler).sort_stats("tottime").print_stats(14)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--elements", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="print where the time of our step goes")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    figures = {}
    for form in BODIES:
        figures[form] = result = measure(form, arguments.elements, arguments.rounds)
        print(f"{form}: microseconds of CPU an element, source and sink taken off")
        for name in ("article", "fused", "fused_messages", "stepwise"):
            print(f"  {name:<15}{result[name]:>8.2f}{result[name] / result['article']:>8.2f}")
        print(f"  (source and sink {result['bare']:.2f}, with messages {result['bare_messages']:.2f})")
        if arguments.profile:
            profile(form, arguments.elements)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    # What is defined in __main__ is pickled by value, and so would be the elements.
    from tests.benchmarks import transform_speed  # noqa: PLW0406 - see above

    transform_speed.main()
