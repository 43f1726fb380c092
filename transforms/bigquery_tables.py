"""The BigQuery client and the tables themselves: made where they are missing, never changed."""

from __future__ import annotations

from typing import Any

from transforms.bigquery_rows import (
    DEAD_LETTER_PARTITIONING,
    DEAD_LETTER_SCHEMA,
    SIGNIN_CLUSTERING,
    SIGNIN_PARTITIONING,
    SIGNIN_SCHEMA,
    TableRef,
)

CALL_SECONDS = 30.0
RETRY_SECONDS = 60.0


def client(project: str, emulator_host: str = "") -> Any:
    """A `bigquery.Client` for Google with Application Default Credentials, or for the emulator at a URL.

    Raises google.auth's DefaultCredentialsError where Google is meant and no credentials are found.
    """
    from google.cloud import bigquery

    if not emulator_host:
        return bigquery.Client(project=project)
    from google.api_core.client_options import ClientOptions
    from google.auth.credentials import AnonymousCredentials

    url = emulator_host if "://" in emulator_host else f"http://{emulator_host}"
    return bigquery.Client(
        project=project,
        credentials=AnonymousCredentials(),
        client_options=ClientOptions(api_endpoint=url.rstrip("/")),
    )


def ensure_tables(client: Any, table: TableRef, dead_letter_table: TableRef, location: str = "") -> None:
    """Makes the datasets and tables that are missing; those that exist stay as they are.

    `location` is the place of a new dataset; empty leaves it to BigQuery. Raises GoogleAPIError.
    """
    for project, dataset in dict.fromkeys([table[:2], dead_letter_table[:2]]):
        _ensure_dataset(client, project, dataset, location)
    _ensure_table(client, table, SIGNIN_SCHEMA, SIGNIN_PARTITIONING, SIGNIN_CLUSTERING)
    _ensure_table(client, dead_letter_table, DEAD_LETTER_SCHEMA, DEAD_LETTER_PARTITIONING, [])


def columns(client: Any, table: TableRef) -> frozenset[str]:
    """The names of the table's columns. Raises NotFound where there is no such table."""
    return frozenset(field.name for field in client.get_table(str(table), **_bounds()).schema)


def _ensure_dataset(client: Any, project: str, dataset: str, location: str) -> None:
    from google.api_core.exceptions import NotFound
    from google.cloud import bigquery

    wanted = bigquery.Dataset(f"{project}.{dataset}")
    try:
        # Looking first lets a caller pass who may use the dataset but may not make one.
        client.get_dataset(wanted.reference, **_bounds())
    except NotFound:
        if location:
            wanted.location = location
        client.create_dataset(wanted, exists_ok=True, **_bounds())


def _ensure_table(
    client: Any,
    table: TableRef,
    schema: list[dict[str, Any]],
    partitioning: dict[str, str],
    clustering: list[str],
) -> None:
    from google.api_core.exceptions import NotFound
    from google.cloud import bigquery

    try:
        client.get_table(str(table), **_bounds())
    except NotFound:
        wanted = bigquery.Table(str(table), [bigquery.SchemaField.from_api_repr(field) for field in schema])
        wanted.time_partitioning = bigquery.TimePartitioning(
            type_=partitioning["type"], field=partitioning["field"]
        )
        if clustering:
            wanted.clustering_fields = clustering
        client.create_table(wanted, exists_ok=True, **_bounds())


def _bounds() -> dict[str, Any]:
    """The deadline of one attempt and the bound on all of them."""
    from google.cloud.bigquery import DEFAULT_RETRY

    return {"timeout": CALL_SECONDS, "retry": DEFAULT_RETRY.with_timeout(RETRY_SECONDS)}
