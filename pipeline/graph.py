"""What every pipeline of ours does with its messages: rows and dead letters into BigQuery."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import apache_beam as beam

from transforms.bigquery_write import WriteDeadLetters, WriteSignins
from transforms.pubsub_message import DEAD_LETTERS, MessageExtractingFn

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
    extracted = messages | "Extract sign-ins from messages" >> beam.ParDo(
        MessageExtractingFn(**origin)
    ).with_outputs(DEAD_LETTERS, main="rows")
    written = extracted.rows | "Write sign-ins to BigQuery" >> WriteSignins(
        table, emulator_host=bigquery_emulator, **origin
    )
    (
        (extracted[DEAD_LETTERS], written[DEAD_LETTERS], *further_dead_letters)
        | "Gather dead letters" >> beam.Flatten()
        | "Write dead letters to BigQuery"
        >> WriteDeadLetters(dead_letter_table, emulator_host=bigquery_emulator)
    )
