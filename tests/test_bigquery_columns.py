"""The columns of a table that changes, or does not say what it has, while rows are written to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.append_rows_server import AppendRowsServer
from tests.bigquery_servers import StrictBigQuery
from tests.test_bigquery_write import METHODS, Servers, age_columns, ids, messages_of


@pytest.fixture(params=METHODS)
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    with StrictBigQuery() as rest, AppendRowsServer() as append:
        yield Servers(request.param, rest, append)
        assert append.faults == []


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
