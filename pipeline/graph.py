"""What every pipeline of ours does with its messages: rows and dead letters into BigQuery."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import apache_beam as beam

from pipeline import credentials
from transforms.bigquery_write import WriteDeadLetters, WriteSignins
from transforms.dead_letter_topic import Topic

if TYPE_CHECKING:
    from pipeline.options import SigninOptions


def write_messages(
    messages: Any,
    options: SigninOptions,
    bigquery_emulator: str = "",
    *,
    further_dead_letters: tuple[Any, ...] = (),
) -> None:
    """Makes each message a row or a dead letter, and appends it to its table.

    `bigquery_emulator` is a URL; empty means Google. The collections of `further_dead_letters` go with
    those that arise here. The labels are part of a running job: Dataflow
    refuses an update that renames one.
    """
    table, dead_letter_table = options.tables()
    origin: dict[str, Any] = options.origin()
    method = options.method(bigquery_emulator)
    emulators: dict[str, Any] = {
        "emulator_host": bigquery_emulator,
        "storage_emulator_host": credentials.bigquery_storage_emulator() if bigquery_emulator else "",
    }
    traces = options.traces()
    letters = messages | "Write sign-ins to BigQuery" >> WriteSignins(
        table, method=method, traces=traces, **emulators, **origin
    )
    if further_dead_letters:
        letters = (letters, *further_dead_letters) | "Gather dead letters" >> beam.Flatten()
    topic = options.dead_letter_topic
    _ = letters | "Write dead letters to BigQuery" >> WriteDeadLetters(
        dead_letter_table,
        method="STORAGE_WRITE" if method in ("STORAGE_WRITE", "STORAGE_WRITE_API") else "INSERT_ALL",
        topic=Topic(topic, credentials.pubsub_emulator() if bigquery_emulator else "") if topic else None,
        traces=traces,
        **emulators,
    )
