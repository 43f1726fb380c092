"""insertAll learns of a new column some time after the table has it; its rows wait for that, not for ever."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.bigquery_servers import refusal
from tests.write_servers import (
    Servers,
    ids,
    messages_of,
    write_servers,
)
from transforms import bigquery_writer


@pytest.fixture
def servers() -> Iterator[Servers]:
    with write_servers("INSERT_ALL") as servers:
        yield servers


def knows_not(column: str, of: str = "user-1") -> Any:
    """An answer that refuses the row of a user, as Google does for a field that it does not know (yet)."""

    def judge(rows: list[dict[str, Any]]) -> Any:
        bad = [index for index, row in enumerate(rows) if row["userid"] == of]
        message = f"no such field: {column}."
        return 200, {"insertErrors": [refusal(i, "invalid", message=message, location=column) for i in bad]}

    return judge


def test_a_row_refused_for_a_column_that_the_table_has_is_sent_again_alone(servers: Servers):
    servers.rest.script = [knows_not("event_id")] * 3
    letters, counters, _ = servers.write(messages_of(3))
    assert letters == []
    assert (counters["rows_written"], counters["write_retries"]) == (3, 3)
    assert ids(servers.taken()) == ["id-0", "id-1", "id-2"]
    assert servers.requests() == [3, 1, 1, 1]


def test_a_row_refused_for_a_column_that_the_table_has_not_is_a_dead_letter_at_once(servers: Servers):
    servers.rest.script = [knows_not("colour")]
    (letter,) = servers.write(messages_of(3)).letters
    assert "no such field: colour" in letter["detail"]
    assert servers.requests() == [3]


def test_a_column_that_stays_unknown_fails_the_bundle_at_first_and_costs_the_row_in_the_end(servers: Servers):
    servers.rest.script = [knows_not("event_id")] * 100
    with pytest.raises(Exception, match=r"1 rows were not taken by .* in 4 calls: .*no such field: event_id"):
        servers.write(messages_of(2))
    for writer in bigquery_writer._writers.values():
        writer._adopted_at -= bigquery_writer._LATE_SECONDS
    (letter,) = servers.write(messages_of(2)).letters
    assert (letter["event_id"], letter["reason"]) == ("id-1", "row_refused")
