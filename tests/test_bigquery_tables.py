"""The tables are made where they are missing, given new columns, and refused where rows do not fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.api_core.exceptions import NotFound
from google.cloud import bigquery

from tests.bigquery_servers import PROJECT, local_bigquery
from transforms import bigquery_tables
from transforms.bigquery_rows import (
    DEAD_LETTER_COLUMNS,
    DEAD_LETTER_SCHEMA,
    SIGNIN_COLUMNS,
    SIGNIN_SCHEMA,
    TableRef,
    deduplicated,
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with local_bigquery(tmp_path_factory.mktemp("bigquery")) as url:
        client = bigquery_tables.client(PROJECT, url)
        yield client
        client.close()


def modes(schema: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    return {column["name"]: (column["type"], column["mode"]) for column in schema}


def test_both_tables_are_made_partitioned_and_a_second_time_changes_nothing(client: Any):
    table, letters = TableRef(PROJECT, "made", "signins"), TableRef(PROJECT, "made_letters", "dead_letters")
    for _ in range(2):
        bigquery_tables.ensure_tables(client, table, letters, "EU")
    made = client.get_table(str(table))
    assert modes([field.to_api_repr() for field in made.schema]) == modes(SIGNIN_SCHEMA)
    assert (made.time_partitioning.type_, made.time_partitioning.field) == ("DAY", "date")
    assert made.clustering_fields == ["userid"]
    made = client.get_table(str(letters))
    assert modes([field.to_api_repr() for field in made.schema]) == modes(DEAD_LETTER_SCHEMA)
    assert (made.time_partitioning.type_, made.time_partitioning.field) == ("DAY", "failed_at")
    assert client.get_dataset("made").location == "EU"
    assert bigquery_tables.columns(client, table).keys() == SIGNIN_COLUMNS
    assert bigquery_tables.columns(client, letters).keys() == DEAD_LETTER_COLUMNS


def test_the_article_s_table_of_two_columns_is_left_as_it_is(client: Any):
    table, letters = TableRef(PROJECT, "article", "signins"), TableRef(PROJECT, "article", "dead_letters")
    client.create_dataset("article")
    schema = [bigquery.SchemaField("userid", "STRING"), bigquery.SchemaField("date", "TIMESTAMP")]
    client.create_table(bigquery.Table(str(table), schema))
    bigquery_tables.ensure_tables(client, table, letters)
    assert bigquery_tables.columns(client, table).keys() == {"userid", "date"}
    assert bigquery_tables.columns(client, letters).keys() == DEAD_LETTER_COLUMNS


def test_the_columns_of_no_table_are_not_found(client: Any):
    with pytest.raises(NotFound):
        bigquery_tables.columns(client, TableRef(PROJECT, "nowhere", "signins"))


def test_new_optional_columns_are_added_to_a_table_of_an_earlier_version(client: Any):
    table, letters = TableRef(PROJECT, "earlier", "signins"), TableRef(PROJECT, "earlier", "dead_letters")
    client.create_dataset("earlier")
    for name, schema in ((table, SIGNIN_SCHEMA[:3]), (letters, DEAD_LETTER_SCHEMA[:-2])):
        own = {"name": "note", "type": "STRING", "mode": "NULLABLE"}
        fields = [bigquery.SchemaField.from_api_repr(field) for field in [*schema, own]]
        client.create_table(bigquery.Table(str(name), fields))
    client.insert_rows_json(str(table), [{"userid": "u", "date": "2024-01-02T03:04:05Z", "event_id": "id-1"}])
    bigquery_tables.ensure_tables(client, table, letters)
    assert bigquery_tables.columns(client, table).keys() == SIGNIN_COLUMNS | {"note"}
    assert bigquery_tables.columns(client, letters).keys() == DEAD_LETTER_COLUMNS | {"note"}
    (row,) = client.query(f"SELECT * FROM `{table}`").result()
    assert (row["userid"], row["event_id"], row["published_at"]) == ("u", "id-1", None)


def test_the_view_has_each_event_once_and_every_row_without_an_id(client: Any):
    table, letters = TableRef(PROJECT, "viewed", "signins"), TableRef(PROJECT, "viewed", "dead_letters")
    bigquery_tables.ensure_tables(client, table, letters)
    day = "2024-01-02T03:04:0"
    rows = [
        {"userid": "late", "date": f"{day}5Z", "event_id": "id-1", "published_at": f"{day}9Z"},
        {"userid": "first", "date": f"{day}5Z", "event_id": "id-1", "published_at": f"{day}7Z"},
        {"userid": "untimed", "date": f"{day}5Z", "event_id": "id-1"},
        {"userid": "other", "date": f"{day}5Z", "event_id": "id-2"},
        {"userid": "bare", "date": f"{day}5Z"},
        {"userid": "bare", "date": f"{day}5Z"},
    ]
    assert client.insert_rows_json(str(table), rows) == []
    found = client.query(f"SELECT userid FROM `{deduplicated(table)}`").result()
    assert sorted(row["userid"] for row in found) == ["bare", "bare", "first", "other"]


GOOD = [*SIGNIN_SCHEMA]


@pytest.mark.parametrize(
    ("column", "changed", "words"),
    [
        (0, {"type": "INTEGER"}, "column userid of the type INTEGER REQUIRED, and needs STRING REQUIRED"),
        (1, None, "has no column date of the type TIMESTAMP REQUIRED"),
        (1, {"type": "DATETIME"}, "column date of the type DATETIME REQUIRED, and needs TIMESTAMP"),
        (2, {"mode": "REPEATED"}, "column event_id of the type STRING REPEATED, and needs STRING NULLABLE"),
        (2, {"mode": "REQUIRED"}, "column event_id of the type STRING REQUIRED, and needs STRING NULLABLE"),
        (4, {"mode": "NULLABLE"}, "column attributes of the type RECORD NULLABLE, and needs RECORD REPEATED"),
        (4, {"fields": GOOD[4]["fields"][1:]}, "column attributes, has no column key of the type STRING"),
        (4, {"fields": GOOD[4]["fields"][:1]}, "column attributes, has no column value of the type STRING"),
        (
            4,
            {"fields": [*GOOD[4]["fields"], {"name": "kind", "type": "STRING", "mode": "REQUIRED"}]},
            "column attributes, has a column kind of the type STRING REQUIRED, which no row fills",
        ),
        (3, {"name": "when", "mode": "REQUIRED"}, "column when of the type TIMESTAMP REQUIRED, which no row"),
    ],
)
def test_a_table_that_cannot_take_the_rows_is_refused_by_column_and_types(column, changed, words):
    schema = [dict(field) for field in GOOD]
    if changed is None:
        del schema[column]
    else:
        schema[column] |= changed
    found = bigquery_tables.columns_of(schema)
    with pytest.raises(bigquery_tables.SchemaError, match=words):
        bigquery_tables.require_schema("p.d.t", found, SIGNIN_SCHEMA)


@pytest.mark.parametrize(
    "schema",
    [
        SIGNIN_SCHEMA[:2],
        [{"name": "userid", "type": "string"}, {"name": "date", "type": "timestamp"}],
        [*SIGNIN_SCHEMA, {"name": "note", "type": "JSON", "mode": "NULLABLE"}],
        [*SIGNIN_SCHEMA[:4], SIGNIN_SCHEMA[4] | {"type": "STRUCT"}],
    ],
)
def test_a_table_that_can_take_the_rows_is_accepted(schema):
    bigquery_tables.require_schema("p.d.t", bigquery_tables.columns_of(schema), SIGNIN_SCHEMA)
