"""Every fault of BigQuery under a running job, for both of our own write methods, one after the other.

No good row is lost, bad rows become dead letters, and a drain still ends. That others do not wait meanwhile,
and that a drain under a fault loses nothing, is shown by `test_bigquery_fault_order.py`.
"""

from __future__ import annotations

import contextlib
import threading
import time

import grpc
import pytest
from google.rpc import code_pb2

from pipeline.local_engine.batch_source import ReadLeasedMessages
from pipeline.local_engine.engine import Limits
from pipeline.local_engine.runs import GraphRuns
from pipeline.options import parse
from pipeline.user_signin import build
from tests.append_rows_server import AppendRowsServer
from tests.bigquery_servers import PROJECT, forget_clients, local_bigquery, set_faults
from tests.engine_place import Place, until
from tests.pubsub_process import PubsubProcess
from transforms import bigquery_tables, bigquery_writer
from transforms.bigquery_rows import DEAD_LETTER_SCHEMA, SIGNIN_SCHEMA, parse_table
from transforms.signin_event import SigninEvent, encode

LIMITS = Limits(batch_messages=50, retry_seconds=0.1, max_pause_seconds=0.2, park_seconds=1)
GOOD, BAD = 20, 2
TABLE = parse_table("faults.signins", PROJECT)
LETTERS = parse_table("faults.dead_letters", PROJECT)
SERIES = ("503", "429", "quota", "reset", "lost answer", "slow", "row errors", "table deleted", "narrowed")


class World:
    """A job whose rows go to a BigQuery with a fault switch; `rows` and `letters` are what is in it."""

    def __init__(self, place, url, client, append):
        self.place, self.url, self.client, self.append = place, url, client, append
        self.published = 0

    def publish(self, series):
        good = [event(f"{series}-{number}") for number in range(GOOD)]
        bad = [event(f"{series}-bad-{number}") for number in range(self.bad(series))]
        self.place.publish(*[encode(one).decode() for one in [*good, *bad]])

    def bad(self, series):
        """How many bad rows go with the good ones."""
        return BAD

    def rows(self):
        return self._ids(TABLE)

    def letters(self):
        return self._ids(LETTERS)

    def _ids(self, table):
        with contextlib.suppress(Exception):  # the table may be deleted just now
            query = f"SELECT event_id FROM `{table}`"
            return {row["event_id"] for row in self.client.query(query, timeout=20).result(timeout=20)}
        return set()


class Insert(World):
    method = "INSERT_ALL"

    def bad(self, series):
        return 0 if series in ("lost answer", "slow") else BAD  # a call that passes late refuses nothing

    def begin(self, series):
        faults = {
            "503": {"code": "503", "times": 2},
            "429": {"code": "429", "times": 2},
            "quota": {"code": "403", "reason": "quotaExceeded", "times": 2},
            "reset": {"reset": True, "times": 2},
            "lost answer": {"code": "502", "times": 1, "after": True},
            "slow": {"delay_seconds": 1.0, "times": 1},
        }
        refuse = {"method": "insertAll", "refuse": "-bad-", "table": TABLE.table}
        fault = [{"method": "insertAll", **faults[series]}] if series in faults else []
        set_faults(self.url, *fault, refuse)
        if series == "table deleted":
            self.client.delete_table(str(TABLE))
        if series == "narrowed":
            self.client.delete_table(str(TABLE))
            self.create(SIGNIN_SCHEMA[:3])

    def create(self, schema):
        from google.cloud import bigquery

        fields = [bigquery.SchemaField.from_api_repr(field) for field in schema]
        self.client.create_table(bigquery.Table(str(TABLE), fields))

    def end(self, series):
        if series == "table deleted":
            self.create(SIGNIN_SCHEMA)


class Append(World):
    method = "STORAGE_WRITE"

    def begin(self, series):
        self.append.refuse = lambda row: "bad" if "userid" in row and "-bad-" in row["event_id"] else ""
        steps = {
            "503": [grpc.StatusCode.UNAVAILABLE] * 2,
            "429": [code_pb2.RESOURCE_EXHAUSTED] * 2,
            "quota": [grpc.StatusCode.RESOURCE_EXHAUSTED] * 2,
            "reset": [grpc.StatusCode.UNKNOWN, code_pb2.ABORTED, code_pb2.INTERNAL],
            "lost answer": ["lost"],
        }
        with contextlib.suppress(KeyError):
            self.append.script.extend(steps[series])
        self.append.delay_seconds = 0.5 if series == "slow" else 0.0
        if series == "table deleted":
            self.kept = self.tables()
            self.append.delete(TABLE)
        if series == "narrowed":
            rows = self.tables().rows
            self.append.create(TABLE, SIGNIN_SCHEMA[:3]).rows = rows
            self.append.script.append(grpc.StatusCode.ABORTED)
            self.client.delete_table(str(TABLE))
            Insert.create(self, SIGNIN_SCHEMA[:3])

    def tables(self):
        return self.append.tables[f"projects/{PROJECT}/datasets/faults/tables/signins"]

    def end(self, series):
        if series == "table deleted":
            self.append.tables[f"projects/{PROJECT}/datasets/faults/tables/signins"] = self.kept

    def rows(self):
        with contextlib.suppress(KeyError):
            return {row["event_id"] for row in list(self.tables().rows)}
        return set()

    def letters(self):
        table = self.append.tables[f"projects/{PROJECT}/datasets/faults/tables/dead_letters"]
        return {row["event_id"] for row in list(table.rows)}


def event(name):
    return SigninEvent("u", "2024-01-02T03:04:05.000006Z", name.replace(" ", "_"), {"a": "b"})


@pytest.mark.soak
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", [Insert, Append])
def test_no_fault_loses_a_row_or_ends_the_job(kind, tmp_path, monkeypatch):
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(local_bigquery(tmp_path))
        append = stack.enter_context(AppendRowsServer())
        pubsub = stack.enter_context(PubsubProcess(tmp_path))
        client = stack.enter_context(bigquery_tables.client(PROJECT, url))
        bigquery_tables.ensure_tables(client, TABLE, LETTERS)
        append.create(TABLE, SIGNIN_SCHEMA)
        append.create(LETTERS, DEAD_LETTER_SCHEMA)
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", append.address)
        monkeypatch.setattr(bigquery_writer, "_FRESH_SECONDS", 0.2)
        place = Place(pubsub.address)
        options = parse(
            [
                f"--project={PROJECT}",
                f"--write_method={kind.method}",
                f"--output_table={TABLE}",
                f"--dead_letter_table={LETTERS}",
            ]
        )
        world = kind(place, url, client, append)
        place.start(GraphRuns(lambda p: build(p, options, ReadLeasedMessages(), url), options), limits=LIMITS)
        try:
            for series in SERIES:
                survive(world, series)
        finally:
            begun = time.monotonic()
            place.drain()
            place.channel.close()
        assert time.monotonic() - begun < 10
        assert append.faults == []
        forget_clients()


def survive(world, series):
    """One fault: what is published under it is written, and nothing is left of it afterwards."""
    world.begin(series)
    world.publish(series)
    ending = threading.Timer(1.5, world.end, [series])
    ending.start()
    name = series.replace(" ", "_")
    rows = {f"{name}-{number}" for number in range(GOOD)}
    letters = {f"{name}-bad-{number}" for number in range(world.bad(series))}
    until(lambda: rows <= world.rows(), 30)
    until(lambda: letters <= world.letters(), 30)
    ending.join()
    assert not any("-bad-" in row for row in world.rows())
    assert all("-bad-" in letter for letter in world.letters())
