"""Rows as protobuf messages for the Storage Write API: the writer's schema, and the encoding."""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from transforms.bigquery_rows import Row

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_Field = descriptor_pb2.FieldDescriptorProto


@functools.lru_cache(maxsize=4096)  # all messages of one Publish call share their time
def timestamp_micros(text: str) -> int:
    """Microseconds since 1970 of an RFC 3339 time, as a TIMESTAMP column takes them."""
    return (datetime.fromisoformat(text) - _EPOCH) // _MICROSECOND


# BigQuery's types: that of the protobuf field, and what makes its value of that in a row.
_TYPES: Mapping[str, tuple[Any, Callable[[Any], Any] | None]] = {
    "STRING": (_Field.TYPE_STRING, None),
    "TIMESTAMP": (_Field.TYPE_INT64, timestamp_micros),
    "BYTES": (_Field.TYPE_BYTES, base64.b64decode),
}


class RowMessages:
    """Encodes the rows of a table whose columns are `columns`, a map of names to schema fields.

    A field is a dictionary as in `bigquery_rows.SIGNIN_SCHEMA`. What is absent is NULL to BigQuery, so
    each field is optional to protobuf, and BigQuery itself finds a REQUIRED one missing.
    """

    def __init__(self, columns: Mapping[str, Mapping[str, Any]]) -> None:
        descriptor = descriptor_pb2.DescriptorProto(name="Row")
        _describe(descriptor, columns.values())
        file = descriptor_pb2.FileDescriptorProto(name="row.proto", package="signin", syntax="proto2")
        file.message_type.append(descriptor)
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)
        self._descriptor = descriptor
        self._message = message_factory.GetMessageClass(pool.FindMessageTypeByName("signin.Row"))
        self._converters = [(name, _converter(field)) for name, field in columns.items()]

    def schema(self) -> Any:
        """The `ProtoSchema` that goes ahead of the rows."""
        from google.cloud.bigquery_storage_v1 import types

        schema = types.ProtoSchema.pb()()
        schema.proto_descriptor.CopyFrom(self._descriptor)
        return schema

    def encode(self, row: Row) -> bytes:
        """The serialized message of a row."""
        values = {}
        for name, convert in self._converters:
            value = row.get(name)
            if value is not None:
                values[name] = value if convert is None else convert(value)
        return bytes(self._message(**values).SerializeToString())


def _describe(descriptor: Any, fields: Any) -> None:
    for number, field in enumerate(fields, start=1):
        is_repeated = field["mode"] == "REPEATED"
        described = descriptor.field.add(
            name=field["name"],
            number=number,
            label=_Field.LABEL_REPEATED if is_repeated else _Field.LABEL_OPTIONAL,
        )
        if field["type"] == "RECORD":
            nested = descriptor.nested_type.add(name=f"Record{number}")
            _describe(nested, field["fields"])
            described.type = _Field.TYPE_MESSAGE
            described.type_name = nested.name
        else:
            described.type = _TYPES[field["type"]][0]


def _converter(field: Mapping[str, Any]) -> Callable[[Any], Any] | None:
    return None if field["type"] == "RECORD" else _TYPES[field["type"]][1]
