"""The order of writing: a row in its table is not written again because a dead letter cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import apache_beam as beam
import pytest

from tests.bigquery_servers import failure
from tests.write_servers import (
    LETTERS,
    POLICY,
    TABLE,
    Servers,
    ids,
    messages_of,
    run_pipeline,
    servers_of_each_method,  # noqa: F401 - a fixture
)
from transforms.bigquery_rows import DEAD_LETTER_SCHEMA
from transforms.bigquery_write import WriteDeadLetters, WriteSignins

QUICK = replace(POLICY, attempts=2)


class WriteBoth(beam.PTransform):  # type: ignore[misc]
    """The two steps as the pipelines have them."""

    def __init__(self, servers: Servers) -> None:
        super().__init__()
        means: dict[str, Any] = {
            "method": servers.method,
            "emulator_host": servers.rest.url,
            "storage_emulator_host": servers.append.address,
            "policy": QUICK,
        }
        self._rows, self._letters = WriteSignins(TABLE, **means), WriteDeadLetters(LETTERS, **means)

    def expand(self, messages: Any) -> Any:
        return messages | "Rows" >> self._rows | "Letters" >> self._letters


def refuse_letters(servers: Servers) -> None:
    servers.append.delete(LETTERS)

    def judge(rows: list[dict[str, Any]]) -> Any:
        return failure(403, "accessDenied") if "stage" in rows[0] else (200, {})

    servers.rest.script = [judge] * 100


def test_no_row_is_written_again_and_again_while_the_dead_letter_table_cannot_be_written(servers: Servers):
    messages = [*messages_of(50), b"no sign-in", *messages_of(99)[50:]]
    refuse_letters(servers)
    for _ in range(3):
        with pytest.raises(Exception, match=r"403|NOT_FOUND"):
            run_pipeline(messages, WriteBoth(servers))
    assert servers.taken() == []
    servers.rest.script = []
    servers.letters = servers.append.create(LETTERS, DEAD_LETTER_SCHEMA)
    counters = run_pipeline(messages, WriteBoth(servers)).counters
    assert (counters["rows_written"], counters["dead_letters_written"]) == (99, 1)
    rows = [row for row in servers.taken() if "stage" not in row]
    assert len(ids(rows)) == len(set(ids(rows))) == 99


def test_a_bundle_s_dead_letters_go_in_no_more_than_one_request_more(servers: Servers):
    counters = run_pipeline([b"no sign-in"] * 300, WriteBoth(servers)).counters
    assert counters["dead_letters_written"] == 300
    assert servers.requests() == [1, 299]
