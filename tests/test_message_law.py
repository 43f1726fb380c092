"""Any bytes with any attributes: one row that BigQuery takes, or one dead letter with the same bytes."""

from __future__ import annotations

import random

from tests import column_rules
from tests.any_message import Judge, judge_together, messages
from tests.bigquery_servers import PROJECT, local_bigquery
from transforms.bigquery_rows import DEAD_LETTER_SCHEMA, SIGNIN_SCHEMA, TableRef
from transforms.bigquery_tables import client, ensure_tables
from transforms.signin_event import REASONS


def test_twenty_thousand_messages_obey_the_law_and_the_server_takes_their_rows(tmp_path):
    judge = Judge()
    rows = [row for message in messages(2026, 20_000) if (row := judge.row_of(message)) is not None]
    assert judge.tally.total() == 20_000
    # The messages are no better than what they reach.
    assert len(rows) > 2_000
    assert set(judge.tally) >= set(REASONS) - {"unknown_field", "date_in_future"}
    table = TableRef(PROJECT, "law", "signins")
    with local_bigquery(tmp_path) as url, client(PROJECT, url) as bigquery:
        ensure_tables(bigquery, table, TableRef(PROJECT, "law", "letters"))
        for start in range(0, len(rows), 5_000):
            part = rows[start : start + 5_000]
            assert bigquery.insert_rows_json(str(table), part, row_ids=[None] * len(part), timeout=30) == []
        ((count,),) = bigquery.query("SELECT COUNT(*) FROM law.signins").result(timeout=30)
    assert count == len(rows)


def test_messages_become_the_same_together_as_each_alone():
    chance = random.Random(7)
    for seed in range(200):
        judge_together(list(messages(seed, chance.randrange(1, 100))), chance)


def test_the_judge_refuses_what_bigquery_refuses():
    good = {"userid": "u", "date": "2024-01-02T03:04:05.000000Z"}
    for wrong in (
        {"userid": None},
        {"userid": 5},
        {"userid": "\ud800"},
        {"date": "2024-02-30T03:04:05.000000Z"},
        {"date": "0000-01-01T00:00:00.000000Z"},
        {"date": "2024-01-02T03:04:60.000000Z"},
        {"date": "2024-01-02"},
        {"colour": "blue"},
        {"attributes": {"key": "k", "value": "v"}},
        {"attributes": [{"value": "no key"}]},
        {"attributes": [{"key": "k", "value": "v", "more": "x"}]},
        {"attributes": [None]},
        {"event_id": float("nan")},
        {"event_id": "x" * 10_000_000},
    ):
        assert column_rules.complaints(good | wrong, SIGNIN_SCHEMA), wrong
    assert not column_rules.complaints(good | {"attributes": [{"key": "k"}], "event_id": None}, SIGNIN_SCHEMA)
    letter = {"failed_at": good["date"], "stage": "decode", "reason": "r"}
    assert not column_rules.complaints(letter | {"payload": "AA=="}, DEAD_LETTER_SCHEMA)
    assert column_rules.complaints(letter | {"payload": "A"}, DEAD_LETTER_SCHEMA)
