"""The schema and rows of AppendRows' writers, held against a table as BigQuery does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, unknown_fields
from google.protobuf.message import DecodeError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Field = descriptor_pb2.FieldDescriptorProto
TAKEN_BY = {  # of Google's table of types those that this project's columns need
    "STRING": {Field.TYPE_STRING},
    "BYTES": {Field.TYPE_BYTES, Field.TYPE_STRING},
    "TIMESTAMP": {Field.TYPE_INT64, Field.TYPE_INT32, Field.TYPE_UINT32},
    "RECORD": {Field.TYPE_MESSAGE, Field.TYPE_GROUP},
}
FIRST_MICROS = (datetime(1, 1, 1, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
LAST_MICROS = (datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)


class AbortError(Exception):
    """Ends the connection with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code, self.details = code, details


def invalid(details: str) -> AbortError:
    return AbortError(grpc.StatusCode.INVALID_ARGUMENT, details)


def message_class(descriptor: Any, schema: list[dict[str, Any]]) -> Any:
    """The class of the writer's rows, if its schema fits the table's."""
    _require_fit(descriptor, schema)
    file = descriptor_pb2.FileDescriptorProto(name="received.proto", syntax="proto2")
    file.message_type.append(descriptor)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(descriptor.name))


def _require_fit(descriptor: Any, schema: list[dict[str, Any]]) -> None:
    columns = {column["name"]: column for column in schema}
    nested = {one.name: one for one in descriptor.nested_type}
    for described in descriptor.field:
        column = columns.get(described.name)
        if column is None:
            raise AbortError(
                grpc.StatusCode.INVALID_ARGUMENT, f"Input schema has more fields: {described.name}"
            )
        if described.type not in TAKEN_BY[column["type"]]:
            raise AbortError(
                grpc.StatusCode.INVALID_ARGUMENT, f"the type of {described.name} does not convert"
            )
        if (described.label == Field.LABEL_REPEATED) != (column["mode"] == "REPEATED"):
            raise AbortError(
                grpc.StatusCode.INVALID_ARGUMENT, f"{described.name} is repeated on one side alone"
            )
        if column["type"] == "RECORD":
            _require_fit(nested[described.type_name.rpartition(".")[2]], column["fields"])


def decoded_row(message: Any, schema: list[dict[str, Any]]) -> dict[str, Any]:
    """The message as a dictionary without what is not set; times are datetimes where they are in range."""
    if len(unknown_fields.UnknownFieldSet(message)):
        raise DecodeError("the row has fields that its schema has not")
    columns = {column["name"]: column for column in schema}
    row: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        column = columns[descriptor.name]
        if column["type"] == "RECORD":
            row[descriptor.name] = [decoded_row(record, column["fields"]) for record in value]
        elif column["type"] == "TIMESTAMP" and FIRST_MICROS <= value <= LAST_MICROS:
            row[descriptor.name] = EPOCH + timedelta(microseconds=value)
        else:
            row[descriptor.name] = value
    return row


def row_fault(row: dict[str, Any], schema: list[dict[str, Any]]) -> str:
    """What BigQuery would refuse the row for."""
    for column in schema:
        value = row.get(column["name"])
        if value is None and column["mode"] == "REQUIRED":
            return f"Field {column['name']} is required"
        if column["type"] == "TIMESTAMP" and isinstance(value, int):
            return f"Field {column['name']} is out of range"
        if column["type"] == "RECORD":
            for record in value or ():
                if fault := row_fault(record, column["fields"]):
                    return fault
    return ""
