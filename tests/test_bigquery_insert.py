"""insertAll against a server that answers byte by byte: the whole call has a deadline, not each byte."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.bigquery_servers import PROJECT
from transforms.bigquery_delivery import TAKEN, TransientError
from transforms.bigquery_insert import InsertAll, open_session
from transforms.bigquery_rows import SIGNIN_SCHEMA, TableRef
from transforms.bigquery_tables import columns_of

TABLE = TableRef(PROJECT, "user_signin", "signins")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ENDLESS = {"head": HEAD + b"X-Slow: ", "body": HEAD + b"Content-Length: 1000\r\n\r\n{"}
WHOLE = HEAD + b"Content-Length: 2\r\n\r\n{}"
ROW = {"userid": "u", "date": "2024-01-02T03:04:05.000006Z"}


@contextmanager
def server_of(*answers: bytes) -> Iterator[str]:
    """One connection for each answer; what is not whole goes on with a byte every 50 ms, for 5 s at most."""
    ended = threading.Event()

    def serve(listener: socket.socket) -> None:
        for answer in answers:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.recv(65536)
                connection.sendall(answer)
                until = time.monotonic() + (5 if answer != WHOLE else 0)
                while time.monotonic() < until and not ended.wait(0.05):
                    connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        ended.set()
        thread.join(10)


@pytest.mark.parametrize("part", list(ENDLESS))
def test_an_answer_that_comes_byte_by_byte_ends_at_the_call_s_deadline_and_the_next_call_goes_well(part: str):
    with server_of(ENDLESS[part], WHOLE) as url, open_session(url) as session:
        requests = InsertAll(session, TABLE, columns_of(SIGNIN_SCHEMA), url, call_seconds=0.5)
        row = requests.encode(ROW)
        begun = time.monotonic()
        with pytest.raises(TransientError, match=r"no answer in 0\.5 s"):
            requests.send([row])
        assert time.monotonic() - begun < 3
        assert requests.send([row]) == TAKEN
