"""A request of AppendRows that is refused as a whole: the rows at fault are found, if it is not the table."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.write_servers import (
    POLICY,
    TABLE,
    Servers,
    age_columns,
    ids,
    messages_of,
    write_servers,
)
from transforms.bigquery_rows import SIGNIN_SCHEMA
from transforms.bigquery_writer import Destination, shared_writer


@pytest.fixture
def servers() -> Iterator[Servers]:
    with write_servers("STORAGE_WRITE") as servers:
        yield servers


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


@pytest.mark.parametrize("bad", [range(20), range(480, 500), range(1, 500, 2), range(499)])
def test_neither_bad_rows_at_the_head_nor_many_scattered_ones_keep_good_rows_from_the_table(
    servers: Servers, bad: range
):
    spoil(servers, "answer", *[f"user-{number}" for number in bad])
    letters, counters, _ = servers.write(messages_of(500))
    assert ids(letters) == sorted(f"id-{number}" for number in bad)
    assert ids(servers.taken()) == sorted(f"id-{number}" for number in range(500) if number not in bad)
    assert counters["write_retries"] <= 1_500


def test_while_rows_at_fault_are_looked_for_the_answers_of_other_rows_are_not_waited_for(servers: Servers):
    writer = shared_writer(
        Destination(TABLE, "STORAGE_WRITE", servers.rest.url, servers.append.address), SIGNIN_SCHEMA, POLICY
    )
    row = {"userid": "other", "date": "2024-01-02T03:04:05.000006Z", "event_id": "id-other"}
    others = threading.Thread(target=writer.write, args=([row], lambda: None))
    asked, found = threading.Event(), threading.Event()

    def spoils(row: dict[str, object]) -> str:
        if row["userid"] == "other":
            asked.set()
            assert found.wait(20)
        elif row["userid"] == "user-7":
            if others.ident is None:
                others.start()  # behind this request, on the connection that is kept
            elif servers.append.spoilt == 1:
                assert asked.wait(20)
            return "answer"
        return ""

    servers.append.spoils = spoils
    letters = servers.write(messages_of(50)).letters
    assert others.is_alive()
    found.set()
    others.join(20)
    assert ids(letters) == ["id-7"]
    assert servers.table.rows[-1]["event_id"] == "id-other"
    assert len(ids(servers.taken())) == len(set(ids(servers.taken()))) == 50


def test_rows_refused_because_the_table_lost_a_column_during_the_search_are_written_without_it(
    servers: Servers,
):
    def spoils(row: dict[str, object]) -> str:
        if row["userid"] != "user-7":
            return ""
        if servers.append.spoilt == 3 and servers.rest.columns is None:
            servers.rest.columns = ["userid", "date", "event_id"]
            servers.append.create(TABLE, SIGNIN_SCHEMA[:3]).rows = servers.table.rows
            age_columns()
        return "end"  # a schema is looked at when a call begins

    servers.append.spoils = spoils
    letters = servers.write(messages_of(50)).letters
    assert ids(letters) == ["id-7"]
    assert len(ids(servers.taken())) == len(set(ids(servers.taken()))) == 49
    assert {"attributes" in row for row in servers.taken()} == {True, False}


def test_rows_wait_where_every_one_of_them_is_refused_for_that_may_be_the_table(servers: Servers):
    spoil(servers, "answer", *[f"user-{number}" for number in range(500)])
    with pytest.raises(Exception, match="takes no such rows: INVALID_ARGUMENT: bad request"):
        servers.write(messages_of(500))
    assert servers.taken() == []
    assert servers.append.spoilt <= 1_000  # two requests a row
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
