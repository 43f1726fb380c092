"""The tables of the rows and of the dead letters: there, readable, and of the columns that rows need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from service.checkup.findings import Trouble
from service.checkup.place import Place
from service.checkup.refusals import explained, refusal_of
from transforms.bigquery_rows import TableRef, parse_table
from transforms.bigquery_tables import SchemaError, columns_of, require_schema

API = "bigquery.googleapis.com"
CALL_SECONDS = 8.0


class _Schema(msgspec.Struct):
    fields: list[dict[str, Any]] = []


class _Table(msgspec.Struct):
    schema: _Schema = msgspec.field(default_factory=_Schema)


async def table(place: Place, name: str, wanted: Sequence[Mapping[str, Any]]) -> str:
    """Reads the table's columns; one that is missing is made by the first job."""
    settings = place.settings
    try:
        ref = parse_table(name, settings.project)
    except ValueError as error:
        raise Trouble(f"{error}.", "Set it as dataset.table.") from error
    try:
        body = await _get(place, ref, f"/tables/{ref.table}")
    except Exception as error:
        refusal = refusal_of(error)
        missing = refusal is not None and refusal.status == "NOT_FOUND" and await _missing(place, ref)
        known = {
            "NOT_FOUND": Trouble(
                f"There is no such {missing}. A job makes it when it starts.",
                f"bq --project_id={ref.project} mk --dataset {ref.project}:{ref.dataset}"
                if missing == "dataset"
                else "signin jobs launch",
                is_fatal=False,
            ),
            "PERMISSION_DENIED": Trouble(
                "This service may not look at it: it lacks bigquery.tables.get. Dead letters "
                "are read with bigquery.tables.getData and bigquery.jobs.create.",
                await place.grant("roles/bigquery.dataViewer"),
                await place.grant("roles/bigquery.jobUser"),
            ),
        }
        raise explained(error, settings.project, _base(place), known, api=API) from error
    found = columns_of(msgspec.json.decode(body, type=_Table).schema.fields)
    try:
        require_schema(ref, found, wanted)
    except SchemaError as error:
        raise Trouble(f"{error}.", "Name another table, or change the column.") from error
    return f"It has {len(found)} columns."


async def _missing(place: Place, ref: TableRef) -> str:
    """What is not there of a table that is not: the dataset or the table."""
    try:
        await _get(place, ref)
    except Exception as error:
        refusal = refusal_of(error)
        if refusal is not None and refusal.status == "NOT_FOUND":
            return "dataset"
        raise
    return "table"


async def _get(place: Place, ref: TableRef, within: str = "") -> bytes:
    url = f"{_base(place)}/bigquery/v2/projects/{ref.project}/datasets/{ref.dataset}{within}"
    return await place.rest.get(url, {}, deadline_seconds=CALL_SECONDS)


def _base(place: Place) -> str:
    emulator = place.settings.bigquery_emulator_host
    if not emulator:
        return f"https://{API}"
    return (emulator if "://" in emulator else f"http://{emulator}").rstrip("/")
