"""The tables are made where they are missing, and never touched where they exist."""

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
    assert bigquery_tables.columns(client, table) == SIGNIN_COLUMNS
    assert bigquery_tables.columns(client, letters) == DEAD_LETTER_COLUMNS


def test_the_article_s_table_of_two_columns_is_left_as_it_is(client: Any):
    table, letters = TableRef(PROJECT, "article", "signins"), TableRef(PROJECT, "article", "dead_letters")
    client.create_dataset("article")
    schema = [bigquery.SchemaField("userid", "STRING"), bigquery.SchemaField("date", "TIMESTAMP")]
    client.create_table(bigquery.Table(str(table), schema))
    bigquery_tables.ensure_tables(client, table, letters)
    assert bigquery_tables.columns(client, table) == {"userid", "date"}
    assert bigquery_tables.columns(client, letters) == DEAD_LETTER_COLUMNS


def test_the_columns_of_no_table_are_not_found(client: Any):
    with pytest.raises(NotFound):
        bigquery_tables.columns(client, TableRef(PROJECT, "nowhere", "signins"))
