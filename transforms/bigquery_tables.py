"""The BigQuery client and the tables: made where they are missing, and checked for what rows need."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transforms.bigquery_rows import (
    DEAD_LETTER_PARTITIONING,
    DEAD_LETTER_SCHEMA,
    SIGNIN_CLUSTERING,
    SIGNIN_PARTITIONING,
    SIGNIN_SCHEMA,
    TableRef,
    deduplicated,
    deduplicating_query,
)

_log = logging.getLogger(__name__)
CALL_SECONDS = 30.0
RETRY_SECONDS = 60.0
BRIEF_SECONDS = 5.0  # for one attempt and for all, where the caller can do without


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


class SchemaError(ValueError):
    """A table that cannot take the rows; the message names the column and both types."""


def ensure_tables(client: Any, table: TableRef, dead_letter_table: TableRef, location: str = "") -> None:
    """Makes the datasets, tables and the view that are missing, and adds the NULLABLE columns that they lack.

    A table with no more than the article's two columns is left as it is. `location` is the place of a new
    dataset; empty leaves it to BigQuery. Raises SchemaError and GoogleAPIError.
    """
    for project, dataset in dict.fromkeys([table[:2], dead_letter_table[:2]]):
        _ensure_dataset(client, project, dataset, location)
    _ensure_table(client, table, SIGNIN_SCHEMA, SIGNIN_PARTITIONING, SIGNIN_CLUSTERING)
    _ensure_table(client, dead_letter_table, DEAD_LETTER_SCHEMA, DEAD_LETTER_PARTITIONING, [])
    require_columns(client, table, dead_letter_table)
    if "event_id" in columns(client, table):
        _ensure_view(client, table)


def require_columns(client: Any, table: TableRef, dead_letter_table: TableRef) -> None:
    """Raises SchemaError where a table cannot take the rows, NotFound where there is none."""
    require_schema(table, columns(client, table), SIGNIN_SCHEMA)
    require_schema(dead_letter_table, columns(client, dead_letter_table), DEAD_LETTER_SCHEMA)


def columns(client: Any, table: TableRef, *, briefly: bool = False) -> dict[str, dict[str, Any]]:
    """The table's columns by name, each as a dictionary of `name`, `type`, `mode` and perhaps `fields`.

    Raises NotFound where there is no such table.
    """
    bounds = _bounds(BRIEF_SECONDS, BRIEF_SECONDS) if briefly else _bounds()
    return columns_of(field.to_api_repr() for field in client.get_table(str(table), **bounds).schema)


def require_schema(
    table: object,
    found: Mapping[str, Mapping[str, Any]],
    wanted: Sequence[Mapping[str, Any]],
    *,
    is_record: bool = False,
) -> None:
    """Raises SchemaError unless rows of the wanted schema can be appended to a table with these columns.

    It may lack what is not REQUIRED, and may have other columns that are not. A record, which is sent
    whole, lacks nothing.
    """
    for field in wanted:
        column = found.get(field["name"])
        if column is None:
            if is_record or field["mode"] == "REQUIRED":
                raise SchemaError(f"{table} has no column {field['name']} of the type {_type(field)}")
            continue
        if not _takes(column, field):
            raise SchemaError(
                f"{table} has a column {field['name']} of the type {_type(column)}, and needs {_type(field)}"
            )
        if field["type"] == "RECORD":
            within = f"{table}, column {field['name']},"
            require_schema(within, columns_of(column["fields"]), field["fields"], is_record=True)
    known = {field["name"] for field in wanted}
    for name, column in found.items():
        if name not in known and column["mode"] == "REQUIRED":
            raise SchemaError(f"{table} has a column {name} of the type {_type(column)}, which no row fills")


def filled(
    found: Mapping[str, Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Those of the columns that rows of the wanted schema fill, and of their fields likewise."""
    columns = {}
    for field in wanted:
        if column := found.get(field["name"]):
            fields = filled(columns_of(column["fields"]), field.get("fields", ()))
            columns[field["name"]] = {**column, "fields": list(fields.values())}
    return columns


def _takes(column: Mapping[str, Any], field: Mapping[str, Any]) -> bool:
    modes = {field["mode"]} | ({"NULLABLE"} if field["mode"] == "REQUIRED" else set())
    return column["type"] == field["type"] and column["mode"] in modes


def _type(field: Mapping[str, Any]) -> str:
    return f"{field['type']} {field['mode']}"


def columns_of(fields: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Schema fields by name, in the names that this project uses for types and modes."""
    found = {}
    for field in fields:
        kind = str(field["type"]).upper()
        found[field["name"]] = {
            "name": field["name"],
            "type": "RECORD" if kind == "STRUCT" else kind,
            "mode": str(field.get("mode") or "NULLABLE").upper(),
            "fields": list(field.get("fields", ())),
        }
    return found


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
        found = client.get_table(str(table), **_bounds())
    except NotFound:
        wanted = bigquery.Table(str(table), [bigquery.SchemaField.from_api_repr(field) for field in schema])
        wanted.time_partitioning = bigquery.TimePartitioning(
            type_=partitioning["type"], field=partitioning["field"]
        )
        if clustering:
            wanted.clustering_fields = clustering
        client.create_table(wanted, exists_ok=True, **_bounds())
    else:
        _add_columns(client, table, found, schema)


def _add_columns(client: Any, name: TableRef, table: Any, schema: list[dict[str, Any]]) -> None:
    """Adds the columns of a later version, which rows need not have; readers and writers go on meanwhile."""
    from google.cloud import bigquery

    present = {field.name for field in table.schema}
    missing = [field for field in schema if field["name"] not in present and field["mode"] != "REQUIRED"]
    if not missing or present <= {field["name"] for field in schema if field["mode"] == "REQUIRED"}:
        return
    for field in missing:
        # A statement is one act: of two jobs that start at once none undoes the other's. One for each
        # column, because the local BigQuery takes no more.
        statement = f"ALTER TABLE `{name}` ADD COLUMN IF NOT EXISTS `{field['name']}` {_ddl_type(field)}"
        client.query(statement, **_bounds()).result(**_bounds())
        _log.info("%s has the new column %s", name, field["name"])
    altered = client.get_table(str(name), **_bounds())
    present = {field.name for field in altered.schema}
    if any(field["name"] not in present for field in missing):  # the local REST API does not notice it
        added = [field for field in missing if field["name"] not in present]
        altered.schema = [*altered.schema, *map(bigquery.SchemaField.from_api_repr, added)]
        client.update_table(altered, ["schema"], **_bounds())


def _ddl_type(field: Mapping[str, Any]) -> str:
    kind = field["type"]
    if kind == "RECORD":
        parts = ", ".join(f"{part['name']} {_ddl_type(part)}" for part in field["fields"])
        kind = f"STRUCT<{parts}>"
    return f"ARRAY<{kind}>" if field["mode"] == "REPEATED" else str(kind)


def _ensure_view(client: Any, table: TableRef) -> None:
    """Makes the view of the table that has each event once."""
    from google.api_core.exceptions import NotFound
    from google.cloud import bigquery

    view = deduplicated(table)
    try:
        client.get_table(str(view), **_bounds())
    except NotFound:
        wanted = bigquery.Table(str(view))
        wanted.view_query = deduplicating_query(table)
        client.create_table(wanted, exists_ok=True, **_bounds())


def _bounds(call_seconds: float | None = None, retry_seconds: float | None = None) -> dict[str, Any]:
    """The deadline of one attempt and the bound on all of them."""
    from google.cloud.bigquery import DEFAULT_RETRY

    return {
        "timeout": call_seconds or CALL_SECONDS,
        "retry": DEFAULT_RETRY.with_timeout(retry_seconds or RETRY_SECONDS),
    }
