"""What one message costs from its bytes to a row: our step against the article's chain, on Beam's worker.

`python -m tests.benchmarks.transform_speed [--elements N] [--rounds N] [--profile] [--json FILE]`. The
contenders run in turns on Beam's own SDK harness (FnApiRunner), and the median of the rounds counts, in CPU
time. All begin with the same messages and end with a batch of rows, as a request to BigQuery carries it: the
article's chain has a step behind it that does nothing but collect them; ours is the step that production
runs, which extracts and collects in one. What the source alone costs is taken off.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
from apache_beam.io.gcp import pubsub
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from google.pubsub_v1 import types

from pipeline.pubsub_source import RawMessage as RawMessageType
from pipeline.pubsub_source import _parse as parse
from transforms.bigquery_delivery import WritePolicy
from transforms.bigquery_rows import TableRef, to_rows
from transforms.bigquery_write import WriteSigninsFn
from transforms.bigquery_writer import Destination
from transforms.pubsub_message import DEAD_LETTERS, Extractor, MessageExtractingFn
from transforms.signin_columns import decode_together
from transforms.signin_event import SigninEvent

RawMessage = types.PubsubMessage.pb()
BODIES = {
    "article": b'{"userid": "user-%06d", "date": "2017-10-17T20:57:17.338320"}',
    "canonical": (
        b'{"userid":"user-%06d","date":"2017-10-17T20:57:17.338320Z",'
        b'"event_id":"01890a5d-ac96-774b-bcce-b302099a8057"}'
    ),
    "attributes": (
        b'{"userid":"user-%06d","date":"2017-10-17T20:57:17.338320Z",'
        b'"event_id":"01890a5d-ac96-774b-bcce-b302099a8057",'
        b'"attributes":{"device":"phone","ip":"192.0.2.1"}}'
    ),
}
BAD = (b'{"userid":"user', b'{"userid":"user-1","date":"2017-02-30T20:57:17.338320Z"}', b"\xff", b"{}")
# So many different messages come over and over: one that was just read is in the processor's cache.
BATCH = 5_000
# The elements of the run that is under way: the embedded worker runs in this process.
_elements: list[Any] = []
_repeats = 1
_seen = 0


class SourceFn(beam.DoFn):
    def process(self, _: bytes) -> Iterator[Any]:
        for _ in range(_repeats):
            yield from _elements


class SinkFn(beam.DoFn):
    """The least that a writing step does: collects a batch.

    It counts, so that nobody can be quick by losing something.
    """

    def start_bundle(self) -> None:
        self._batch: list[Any] = []

    def process(self, element: Any) -> None:
        self._batch.append(element)
        if len(self._batch) >= BATCH:
            self.finish_bundle()

    def finish_bundle(self) -> None:
        global _seen  # noqa: PLW0603 - the one place where the worker meets the benchmark
        _seen += len(self._batch)
        self._batch = []


class ArticleFn(beam.DoFn):
    """The step of the article: no check, no dead letter."""

    def process(self, element: str) -> Iterator[dict[str, Any]]:
        message = json.loads(element)
        yield {"userid": message["userid"], "date": message["date"]}


def source_alone(_: Any) -> None:
    pass


def bare(elements: Any) -> None:
    _ = elements | "Sink" >> beam.ParDo(SinkFn())


def article(elements: Any) -> None:
    _ = (
        elements
        | "Decode" >> beam.Map(lambda data: data.decode("utf-8"))
        | "Parse" >> beam.ParDo(ArticleFn())
        | "Sink" >> beam.ParDo(SinkFn())
    )


def article_with_attributes(elements: Any) -> None:
    """The same behind what `ReadFromPubSub(with_attributes=True)` does to what Dataflow reads."""
    _ = (
        elements
        | "Read" >> beam.Map(pubsub.PubsubMessage._from_proto_str)
        | "Decode" >> beam.Map(lambda message: message.data.decode("utf-8"))
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


def fused_from_serialized(elements: Any) -> None:
    """The same behind the step that stands behind Dataflow's own reading."""
    fused(elements | "Parse messages" >> beam.Map(parse).with_output_types(RawMessageType))


def stepwise(elements: Any) -> None:
    """The step that gives each row to another step, as the stock ways to write need it."""
    outputs = elements | "Extract" >> beam.ParDo(MessageExtractingFn()).with_outputs(
        DEAD_LETTERS, main="rows"
    )
    _ = outputs.rows | "Sink" >> beam.ParDo(SinkFn())
    _ = outputs[DEAD_LETTERS] | "Sink of letters" >> beam.ParDo(SinkFn())


def run(chain: Callable[[Any], None], elements: list[Any], repeats: int = 1) -> float:
    """CPU seconds of one pipeline over the elements, so many times."""
    global _seen, _repeats
    pipeline = beam.Pipeline(runner=FnApiRunner())
    kind = bytes if isinstance(elements[0], bytes) else RawMessageType
    chain(pipeline | beam.Impulse() | "Source" >> beam.ParDo(SourceFn()).with_output_types(kind))
    _elements[:] = elements
    _seen, _repeats = 0, repeats
    gc.collect()
    begun = time.process_time()
    pipeline.run().wait_until_finish()
    seconds = time.process_time() - begun
    if chain is not source_alone and len(elements) * repeats != _seen:
        raise SystemExit(f"{_seen} of {len(elements) * repeats} elements came out")
    return seconds


def raw_messages(bodies: list[bytes]) -> list[Any]:
    """The same bodies as the Pub/Sub messages that the pipeline really reads."""
    messages = [RawMessage(data=body, message_id=str(number)) for number, body in enumerate(bodies)]
    for number, message in enumerate(messages):
        message.publish_time.seconds = 1_700_000_000 + number // 1000
        message.attributes["event_id"] = str(number)
    return messages


class Contender(NamedTuple):
    """A chain, what it is fed with, and the chain whose cost is taken off."""

    chain: Callable[[Any], None]
    elements: list[Any]
    base: str


def contenders_of(form: str) -> dict[str, Contender]:
    """Who runs over messages of this form. The first one is what the others are compared with."""
    bodies = [BODIES[form] % number for number in range(BATCH)]
    some_bad = [BAD[i // 100 % len(BAD)] if i % 100 == 50 else body for i, body in enumerate(bodies)]
    messages = raw_messages(bodies)
    serialized = [message.SerializeToString() for message in messages]
    return {
        "article": Contender(article, bodies, "source"),
        "ours": Contender(fused, bodies, "source"),
        # The article's chain fails at the first bad message: it is compared as it does with good ones.
        "ours, 1 % bad": Contender(fused, some_bad, "source"),
        "ours, raw messages": Contender(fused, messages, "source, messages"),
        "ours, stepwise": Contender(stepwise, bodies, "source"),
        "article, serialized": Contender(article_with_attributes, serialized, "source, serialized"),
        "ours, serialized": Contender(fused_from_serialized, serialized, "source, serialized"),
        "collecting alone": Contender(bare, bodies, "source"),
        "source": Contender(source_alone, bodies, ""),
        "source, messages": Contender(source_alone, messages, ""),
        "source, serialized": Contender(source_alone, serialized, ""),
    }


def measure(form: str, count: int, rounds: int) -> dict[str, float]:
    """Microseconds of CPU for each element and contender, its base taken off."""
    contenders = contenders_of(form)
    repeats = max(1, count // BATCH)
    for chain, elements, _ in contenders.values():
        run(chain, elements)  # warm
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (chain, elements, _) in contenders.items():
            seconds[name].append(run(chain, elements, repeats))
    micros = {name: 1e6 * statistics.median(values) / (repeats * BATCH) for name, values in seconds.items()}
    return {name: micros[name] - micros.get(each.base, 0.0) for name, each in contenders.items()}


def profile(form: str, count: int) -> None:
    """Where the time of our step goes, part by part: microseconds a message."""
    bodies = [BODIES[form] % number for number in range(BATCH)]
    chunks = [bodies[start : start + 256] for start in range(0, BATCH, 256)]
    repeats = max(1, count // BATCH)
    columns = [decode_together(chunk) for chunk in chunks]
    decoder = msgspec.json.Decoder(SigninEvent)
    step = CountingFn(Destination(TableRef("benchmark", "signin", "rows")), WritePolicy(), Extractor())
    parts: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
        "the step as a whole": (lambda chunk: [list(step.process(body) or ()) for body in chunk], chunks),
        "  decoding and checks": (decode_together, chunks),
        "    of which msgspec": (lambda chunk: list(map(decoder.decode, chunk)), chunks),
        "  rows of it": (to_rows, columns),
        "the article's json.loads": (lambda chunk: [json.loads(body) for body in chunk], chunks),
    }
    for name, (part, inputs) in parts.items():
        begun = time.process_time()
        for _ in range(repeats):
            for each in inputs:
                part(each)
        print(f"  {name:<28}{1e6 * (time.process_time() - begun) / (repeats * BATCH):>8.2f}")


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
        print(f"{form}: microseconds of CPU an element, and the ratio to the article's chain")
        for name, value in result.items():
            print(f"  {name:<28}{value:>8.2f}{value / result['article']:>8.2f}")
        if arguments.profile:
            profile(form, arguments.elements)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    # What is defined in __main__ is pickled by value, and so would be the elements.
    from tests.benchmarks import transform_speed  # noqa: PLW0406 - see above

    transform_speed.main()
