"""The connection of AppendRows to a server that does not keep to the protocol."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from tests.append_rows_server import AppendRowsServer
from tests.bigquery_servers import PROJECT
from tests.engine_place import until
from transforms import bigquery_tables
from transforms.bigquery_append import AppendRows
from transforms.bigquery_delivery import TAKEN
from transforms.bigquery_rows import SIGNIN_SCHEMA, TableRef

TABLE = TableRef(PROJECT, "user_signin", "signins")
ROW = {"userid": "u", "date": "2024-01-02T03:04:05.000006Z"}


@pytest.fixture
def server() -> Iterator[AppendRowsServer]:
    with AppendRowsServer() as server:
        server.create(TABLE, SIGNIN_SCHEMA)
        yield server


def test_an_answer_too_many_ends_the_connection_and_the_next_request_opens_another(server: AppendRowsServer):
    with grpc.insecure_channel(server.address) as channel:
        requests = AppendRows(channel, TABLE, bigquery_tables.columns_of(SIGNIN_SCHEMA), call_seconds=5)
        row = requests.encode(ROW)
        server.script.append("twice")
        assert requests.send([row]) == TAKEN
        connection = requests._connection
        until(connection.is_broken, 5)
        assert not connection._call.is_active()
        assert requests.send([row]) == TAKEN
        requests.retire()
    assert server.connections == 2
    assert server.requests == [1, 1]


def test_of_several_requests_under_way_only_the_oldest_is_to_blame_for_the_end_of_the_connection(
    server: AppendRowsServer,
):
    with grpc.insecure_channel(server.address) as channel:
        requests = AppendRows(channel, TABLE, bigquery_tables.columns_of(SIGNIN_SCHEMA), call_seconds=5)
        row = requests.encode(ROW)
        server.script.append(grpc.StatusCode.INVALID_ARGUMENT)
        server.delay_seconds = 0.3
        answers = [requests._submit([row])[1] for _ in range(3)]
        codes = [answer.exception(5).code() for answer in answers]
    assert codes == [
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNAVAILABLE,
    ]
