"""The local BigQuery as its clients meet it: over HTTP, as a process, with kill -9 in between."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pytest
import requests
from bqemulator.catalog.models import TableSchema
from google.api_core.exceptions import GoogleAPICallError, GoogleAPIError

from service.local.bigquery import StartError, _patched
from service.local.bigquery_inserts import _layout
from transforms import bigquery_tables
from transforms.bigquery_rows import DEAD_LETTER_SCHEMA, SIGNIN_SCHEMA, TableRef

SIGNINS = TableRef("signin-local", "user_signin", "signins")
DEAD_LETTERS = TableRef("signin-local", "user_signin", "dead_letters")
INSERT_PATH = "/bigquery/v2/projects/signin-local/datasets/user_signin/tables/signins/insertAll"
COUNT = "SELECT COUNT(*) AS n, COUNT(DISTINCT event_id) AS ids FROM user_signin.signins"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "service.local.lifeline", "service.local.bigquery", *arguments]


class Server:
    """One server process with its tables made."""

    def __init__(self, data_dir: Path) -> None:
        self.process = subprocess.Popen(
            command("--data-dir", str(data_dir)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.url = json.loads(self.process.stdout.readline())["ready"]
        self.client = bigquery_tables.client("signin-local", self.url)
        bigquery_tables.ensure_tables(self.client, SIGNINS, DEAD_LETTERS)

    def insert(self, ids: list[str], **fields: Any) -> httpx.Response:
        rows = [{"json": {"userid": "u", "date": "2026-01-02T03:04:05.000006Z", "event_id": i}} for i in ids]
        body = {"rows": rows, "skipInvalidRows": True} | fields
        return httpx.post(self.url + INSERT_PATH, json=body, timeout=20)

    def count(self) -> tuple[int, int]:
        (row,) = self.client.query_and_wait(COUNT, wait_timeout=20)
        return row.n, row.ids

    def set_faults(self, *faults: dict[str, Any]) -> httpx.Response:
        return httpx.post(self.url + "/signin/faults", json=faults)

    def end(self, number: int) -> int:
        """Sends the signal; returns the exit code once the process is gone."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(20)
        assert self.process.stdout.read() == b""  # nothing follows the ready line
        return code

    def close(self) -> None:
        """Leaves neither the process nor a file behind."""
        self.process.kill()
        self.process.wait(20)
        self.client.close()
        self.process.stdin.close()
        self.process.stdout.close()


@contextmanager
def serving(data_dir: Path) -> Iterator[Server]:
    server = Server(data_dir)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("bigquery")) as server:
        yield server
        assert server.end(signal.SIGTERM) == 0


def test_a_google_client_reads_back_the_row_that_was_inserted(server: Server) -> None:
    row = {
        "userid": "93234234",
        "date": "2017-10-17T20:57:17.338320Z",
        "attributes": [{"key": "k", "value": "v"}],
    }
    assert server.client.insert_rows_json(str(SIGNINS), [row], skip_invalid_rows=True, timeout=10) == []
    query = "SELECT * FROM user_signin.signins WHERE userid = '93234234'"
    (found,) = server.client.query_and_wait(query, wait_timeout=10)
    assert found.date.isoformat() == "2017-10-17T20:57:17.338320+00:00"
    assert found.attributes == [{"key": "k", "value": "v"}]


def test_a_row_that_does_not_fit_is_named_and_the_others_are_inserted(server: Server) -> None:
    good = {"json": {"userid": "partial", "date": "2026-01-02T03:04:05Z"}}
    bad = {"json": {"userid": "partial", "date": "yesterday"}}
    answer = server.insert([], rows=[good, bad, good])
    assert [error["index"] for error in answer.json()["insertErrors"]] == [1]
    query = "SELECT COUNT(*) AS n FROM user_signin.signins WHERE userid = 'partial'"
    (found,) = server.client.query_and_wait(query, wait_timeout=10)
    assert found.n == 2


ROWS_OF_EVERY_KIND = [
    {"userid": "kinds", "date": "2026-01-02T03:04:05.000006Z"},
    {"userid": "kinds", "date": "0001-01-01T00:00:00Z", "event_id": None, "attributes": []},
    {"userid": "kinds", "date": "9999-12-31T23:59:59.999999Z", "attributes": None, "unknown": 1},
    {"userid": "kinds \u00fc \U0001f600", "date": "2026-01-02T03:04:05+05:30", "event_id": ""},
    {
        "userid": "kinds",
        "date": "2026-01-02T03:04:05Z",
        "attributes": [{"key": "a", "value": "1"}, {"key": "b"}],
    },
    {"userid": "kinds", "date": "2026-01-02T03:04:05Z", "published_at": "2026-01-02T03:04:05.678Z"},
]
KINDS = """SELECT userid, date, event_id, published_at, ARRAY_LENGTH(attributes) AS pairs, attributes
    FROM user_signin.signins WHERE STARTS_WITH(userid, 'kinds') ORDER BY date, event_id, published_at"""


def test_rows_that_enter_in_bulk_are_those_that_enter_one_by_one(server: Server) -> None:
    def found_after(*others: dict[str, Any]) -> list[Any]:
        rows = [{"json": row} for row in (*ROWS_OF_EVERY_KIND, *others)]
        refused = server.insert([], rows=rows).json()["insertErrors"]
        assert [error["index"] for error in refused] == [len(ROWS_OF_EVERY_KIND)] * len(others)
        found = [tuple(row.values()) for row in server.client.query_and_wait(KINDS, wait_timeout=10)]
        server.client.query_and_wait("DELETE FROM user_signin.signins WHERE TRUE", wait_timeout=10)
        return found

    in_bulk = found_after()
    assert len(in_bulk) == len(ROWS_OF_EVERY_KIND)
    # What does not fit makes the server look at every row by itself.
    assert in_bulk == found_after({"userid": "kinds", "date": "yesterday"})


@pytest.mark.parametrize("fault", [[], [{"method": "insertAll", "refuse": "nothing has this"}]])
def test_an_insert_that_is_too_large_is_refused_for_good_in_googles_words(
    server: Server, fault: list[dict[str, Any]]
) -> None:
    before = server.count()
    server.set_faults(*fault)
    try:
        with pytest.raises(GoogleAPICallError, match="payload size exceeds the limit: 16000000") as refused:
            server.client.insert_rows_json(str(SIGNINS), [{"userid": "u" * 17_000_000}], retry=None)
        assert refused.value.code == 413
        assert refused.value.errors[0]["reason"] == "uploadTooLarge"
    finally:
        server.set_faults()
    assert server.insert(["after it"]).json()["insertErrors"] == []
    assert server.count()[0] == before[0] + 1


def test_a_dead_letter_keeps_its_bytes(server: Server) -> None:
    letter = {"failed_at": "2026-01-02T03:04:05Z", "stage": "decode", "reason": "invalid_json"}
    rows = [letter | {"payload": base64.b64encode(bytes(range(256))).decode()}, letter | {"payload": "?"}]
    refused = server.client.insert_rows_json(str(DEAD_LETTERS), rows, skip_invalid_rows=True, timeout=10)
    assert [error["index"] for error in refused] == [1]
    query = "SELECT payload FROM user_signin.dead_letters WHERE reason = 'invalid_json'"
    (found,) = server.client.query_and_wait(query, wait_timeout=10)
    assert found.payload == bytes(range(256))


@pytest.mark.parametrize("schema", [SIGNIN_SCHEMA, DEAD_LETTER_SCHEMA])
def test_rows_of_our_tables_enter_in_bulk(schema: list[dict[str, Any]]) -> None:
    fields = TableSchema.model_validate({"fields": schema}).fields
    assert _layout(fields).read(b'{"rows": [{"json": {}}, {"json": {}}]}').num_rows == 2


def test_inserts_queries_and_plain_reads_at_once_neither_block_nor_fail(server: Server) -> None:
    # bqemulator alone hangs here for ever within a second.
    end = time.monotonic() + 2
    failures: list[str] = []
    calls: dict[str, int] = {}
    inserted = 0

    def insert() -> None:
        nonlocal inserted
        assert server.insert([f"at-once-{inserted}"]).json()["insertErrors"] == []
        inserted += 1

    def query() -> None:
        server.client.query_and_wait(COUNT, wait_timeout=10)

    def read() -> None:
        list(server.client.list_rows(str(SIGNINS), max_results=10, timeout=10, retry=None))

    def look() -> None:
        httpx.get(server.url + "/readyz", timeout=10).raise_for_status()

    def repeat(call: Callable[[], None]) -> None:
        while time.monotonic() < end and not failures:
            try:
                call()
                calls[call.__name__] = calls.get(call.__name__, 0) + 1
            except (httpx.HTTPError, requests.RequestException, GoogleAPIError, AssertionError) as error:
                failures.append(f"{call.__name__}: {error!r}")

    threads = [threading.Thread(target=repeat, args=(call,)) for call in (insert, query, read, look)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert not failures
    assert set(calls) == {"insert", "query", "read", "look"}
    query_text = "SELECT COUNT(*) AS n FROM user_signin.signins WHERE event_id LIKE 'at-once-%'"
    (found,) = server.client.query_and_wait(query_text, wait_timeout=10)
    assert found.n == inserted


def test_a_fault_hits_its_method_as_often_as_it_says_and_others_never(server: Server) -> None:
    assert server.set_faults({"method": "insertAll", "code": "503", "times": 1}).status_code == 200
    refused = server.insert(["fault"])
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, 503)
    server.client.get_table(str(SIGNINS), retry=None, timeout=10)
    assert server.insert(["fault"]).status_code == 200
    assert httpx.get(server.url + "/signin/faults").json()["insertAll"] >= 2


def test_a_fault_after_the_call_loses_only_the_answer(server: Server) -> None:
    server.set_faults({"method": "insertAll", "code": "500", "after": True, "times": 1})
    assert server.insert(["lost-answer"]).status_code == 500
    query = "SELECT COUNT(*) AS n FROM user_signin.signins WHERE event_id = 'lost-answer'"
    (found,) = server.client.query_and_wait(query, wait_timeout=10)
    assert found.n == 1


@pytest.mark.parametrize("fault", [{"code": "UNAVAILABLE"}, {"code": "200"}, {"colour": "red"}])
def test_a_fault_that_means_nothing_over_http_is_refused(server: Server, fault: dict[str, Any]) -> None:
    assert server.set_faults(fault).status_code == 400
    server.set_faults()


def test_a_taken_port_ends_the_start_with_one_sentence(server: Server, tmp_path: Path) -> None:
    port = server.url.rpartition(":")[2]
    start = [sys.executable, "-m", "service.local.bigquery", "--port", port, "--data-dir", str(tmp_path)]
    ended = subprocess.run(start, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.count("\n") == 1
    assert "is another program using it?" in ended.stderr


def test_only_loopback_is_listened_on(tmp_path: Path) -> None:
    start = [sys.executable, "-m", "service.local.bigquery", "--host", "0.0.0.0", "--data-dir", str(tmp_path)]
    ended = subprocess.run(start, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert "not a loopback address" in ended.stderr


def test_acknowledged_rows_survive_kill_9_and_a_soft_stop_and_no_table_is_ever_copied(tmp_path: Path) -> None:
    acknowledged = 0
    with serving(tmp_path) as first:
        assert first.insert(["first"]).json()["insertErrors"] == []
        acknowledged = 1
        killer = threading.Timer(1.0, os.kill, (first.process.pid, signal.SIGKILL))
        killer.start()
        with suppress(httpx.TransportError):
            while True:
                ids = [f"{acknowledged + n}" for n in range(100)]
                assert first.insert(ids).json()["insertErrors"] == []
                acknowledged += len(ids)
        killer.join()
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
    with serving(tmp_path) as second:
        total, distinct = second.count()
        assert total == distinct
        assert acknowledged <= total <= acknowledged + 100  # the last call may have lost its answer only
        assert second.end(signal.SIGTERM) == 0
    with duckdb.connect(str(tmp_path / "bqemulator.duckdb"), read_only=True) as database:
        tables = database.execute("SELECT schema_name, table_name FROM duckdb_tables()").fetchall()
    assert not [name for schema, name in tables if schema == "_bqemulator_snapshots"]


def test_a_data_directory_in_use_ends_the_start_with_one_sentence(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "bqemulator.duckdb")):
        start = [sys.executable, "-m", "service.local.bigquery", "--data-dir", str(tmp_path)]
        ended = subprocess.run(start, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.count("\n") == 1
    assert f"{tmp_path} cannot be opened" in ended.stderr


def test_a_bqemulator_that_changed_inside_is_named_before_anything_starts() -> None:
    with pytest.raises(StartError, match=r"bqemulator \S+ has no Server\.gone"):
        _patched(Server, "gone", lambda: None)
