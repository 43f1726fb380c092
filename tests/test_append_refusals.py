"""A request of AppendRows that is refused as a whole: the rows at fault are found, if it is not the table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.append_rows_server import AppendRowsServer
from tests.bigquery_servers import StrictBigQuery
from tests.write_servers import Servers, ids, messages_of


@pytest.fixture
def servers() -> Iterator[Servers]:
    with StrictBigQuery() as rest, AppendRowsServer() as append:
        yield Servers("STORAGE_WRITE", rest, append)
        assert append.faults == []


def spoil(servers: Servers, way: str, *userids: str) -> None:
    servers.append.spoils = lambda row: way if row.get("userid") in userids else ""


@pytest.mark.parametrize("way", ["answer", "end"])
def test_rows_for_which_a_whole_request_is_refused_become_dead_letters_and_all_others_rows(
    servers: Servers, way: str
):
    spoil(servers, way, "user-7", "user-8", "user-30")
    letters, counters, _ = servers.write(messages_of(50))
    assert ids(letters) == ["id-30", "id-7", "id-8"]
    assert {letter["reason"] for letter in letters} == {"row_refused"}
    assert {letter["detail"] for letter in letters} == {"INVALID_ARGUMENT: bad request"}
    assert (counters["rows_written"], counters["rows_refused"]) == (47, 3)
    assert len(ids(servers.taken())) == len(set(ids(servers.taken()))) == 47
    assert servers.append.spoilt < 60


def test_rows_wait_where_every_one_of_them_is_refused_for_that_may_be_the_table(servers: Servers):
    spoil(servers, "answer", *[f"user-{number}" for number in range(500)])
    with pytest.raises(Exception, match="takes no such rows: INVALID_ARGUMENT: bad request"):
        servers.write(messages_of(500))
    assert servers.taken() == []
    assert servers.append.spoilt < 100
    spoil(servers, "answer")
    assert servers.write(messages_of(500)).counters["rows_written"] == 500


def test_a_row_that_is_refused_alone_waits_until_the_table_has_taken_another(servers: Servers):
    spoil(servers, "answer", "user-0")
    for _ in range(2):
        with pytest.raises(Exception, match="takes no such rows"):
            servers.write(messages_of(1))
    servers.write(messages_of(2)[1:])
    (letter,) = servers.write(messages_of(1)).letters
    assert letter["event_id"] == "id-0"
    with pytest.raises(Exception, match="takes no such rows"):  # of which the other says nothing
        servers.write(messages_of(1))
