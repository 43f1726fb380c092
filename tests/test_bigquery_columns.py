"""The columns of a table that changes, or does not say what it has, while rows are written to it."""

from __future__ import annotations

import pytest

from tests.bigquery_servers import failure
from tests.write_servers import (
    POLICY,
    TABLE,
    Servers,
    age_columns,
    ids,
    messages_of,
    servers_of_each_method,  # noqa: F401 - a fixture
)
from transforms import bigquery_tables, bigquery_writer
from transforms.bigquery_rows import SIGNIN_SCHEMA

NO_TABLE = {
    "outage": failure(503),
    "quota": failure(403, "rateLimitExceeded"),
    "forbidden": failure(403, "accessDenied"),
}


@pytest.fixture(autouse=True)
def _are_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bigquery_tables, "RETRY_SECONDS", 0.5)
    monkeypatch.setattr(bigquery_tables, "BRIEF_SECONDS", 0.5)


def test_rows_wait_as_long_as_the_table_cannot_take_them(servers: Servers):
    servers.write(messages_of(1))
    servers.rest.columns = ["userid", "when"]
    servers.refuse("user-0", "user-1")
    age_columns()
    for _ in range(3):
        with pytest.raises(Exception, match=r"signin-local\.user_signin\.signins has no column date"):
            servers.write(messages_of(2))
    servers.rest.columns = None
    servers.refuse()
    letters, counters, _ = servers.write(messages_of(2))
    assert letters == []
    assert counters["rows_written"] == 2
    assert ids(servers.taken()) == ["id-0", "id-0", "id-1"]


@pytest.mark.parametrize("trouble", list(NO_TABLE))
def test_old_columns_do_while_the_table_does_not_say_what_it_has(
    servers: Servers, trouble: str, caplog: pytest.LogCaptureFixture
):
    servers.write(messages_of(1))
    servers.rest.no_table = NO_TABLE[trouble]
    age_columns(POLICY.columns_seconds + 1)
    servers.write(messages_of(1))
    reads = servers.rest.table_reads
    servers.write(messages_of(1))
    assert servers.rest.table_reads == reads > 1  # it is left alone for a while
    assert len(servers.taken()) == 3
    assert "The columns of signin-local.user_signin.signins could not be read" in caplog.text
    servers.rest.no_table = None
    age_columns()
    servers.write(messages_of(1))
    assert servers.rest.table_reads == reads
    age_columns(bigquery_writer._AGAIN_SECONDS)
    servers.write(messages_of(1))
    assert servers.rest.table_reads == reads + 1


def test_a_table_that_is_gone_or_was_never_read_is_not_written_to(servers: Servers):
    servers.rest.no_table = NO_TABLE["forbidden"]
    with pytest.raises(Exception, match="403"):
        servers.write(messages_of(1))
    servers.rest.no_table = None
    servers.write(messages_of(1))
    servers.rest.no_table = failure(404, "notFound")
    age_columns(POLICY.columns_seconds + 1)
    with pytest.raises(Exception, match="404"):
        servers.write(messages_of(1))
    assert len(servers.taken()) == 1


@pytest.mark.parametrize("trouble", list(NO_TABLE))
def test_rows_that_were_taken_are_not_written_again_where_the_table_does_not_say_what_it_has(
    servers: Servers, trouble: str
):
    servers.write(messages_of(1))
    servers.rest.no_table = NO_TABLE[trouble]
    servers.refuse("user-1")
    age_columns()
    letters, counters, _ = servers.write(messages_of(3))
    assert [(letter["event_id"], letter["reason"]) for letter in letters] == [("id-1", "row_refused")]
    assert counters["rows_written"] == 2
    assert ids(servers.taken()) == ["id-0", "id-0", "id-2"]
    assert servers.rest.table_reads > 1


def test_fields_that_somebody_added_to_the_attributes_of_a_table_stay_null(servers: Servers):
    added = [
        {"name": name, "type": kind, "mode": "NULLABLE"} for name, kind in (("n", "INT64"), ("j", "JSON"))
    ]
    attributes = SIGNIN_SCHEMA[4] | {"fields": [added[0], *SIGNIN_SCHEMA[4]["fields"], added[1]]}
    servers.rest.fields = lambda _: [*SIGNIN_SCHEMA[:4], attributes]
    servers.table = servers.append.create(TABLE, [*SIGNIN_SCHEMA[:4], attributes])
    assert servers.write(messages_of(2)).counters["rows_written"] == 2
    assert [row["attributes"] for row in servers.taken()] == [
        [{"key": "n", "value": "0"}],
        [{"key": "n", "value": "1"}],
    ]
