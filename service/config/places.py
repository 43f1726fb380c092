"""Settings: where things are."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, field_validator

from transforms.bigquery_rows import parse_table

LOCAL_PROJECT = "signin-local"
# The scheme of a database's URL, and the same with its asynchronous driver named.
DATABASE_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
# https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names
_PUBSUB_ID = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9\-_.~+%]{2,254}")
_REGION = re.compile(r"[a-z][a-z0-9-]*")


class Places(BaseModel):
    """Where things are."""

    project: str = Field(LOCAL_PROJECT, min_length=6, description="Google Cloud project id")
    region: str = Field("us-central1", description="Dataflow region")
    topic: str = Field(
        "topic-user-signin", description="Id of the Pub/Sub topic that events are published to"
    )
    subscription: str = Field("user-signin-bigquery", description="Id of the subscription that the job reads")
    table: str = Field("user_signin.signins", description="BigQuery table of the rows, as dataset.table")
    dead_letter_table: str = Field(
        "user_signin.dead_letters", description="BigQuery table of the dead letters, as dataset.table"
    )
    data_dir: Path = Field(Path(".signin"), description="Where the local stack and SQLite keep their files")
    database_url: str = Field(
        "",
        repr=False,  # a secret: it has a password
        description="URL of the metadata database, `postgresql://user:password@host/name`; empty means "
        "SQLite in the data directory",
    )
    secrets_dir: Path = Field(
        Path("/run/secrets"),
        description="Directory of mounted secrets: a file with the name of a secret's variable, in small "
        "letters or capitals, is read where neither the variable nor its `_FILE` is given",
    )

    @field_validator("region")
    @classmethod
    def _require_region(cls, name: str) -> str:
        if not _REGION.fullmatch(name):
            raise ValueError(f"must be the name of a region, as us-central1, not {name!r}")
        return name

    @field_validator("topic", "subscription")
    @classmethod
    def _require_pubsub_id(cls, name: str) -> str:
        if not _PUBSUB_ID.fullmatch(name):
            raise ValueError(
                "must be 3 to 255 letters, digits or -_.~+% that begin with a letter and not with `goog`, "
                f"not {name!r}"
            )
        return name

    @field_validator("table", "dead_letter_table")
    @classmethod
    def _require_table(cls, name: str) -> str:
        try:
            parse_table(name, LOCAL_PROJECT)
        except ValueError:
            raise ValueError(f"must be dataset.table, not {name!r}") from None
        return name

    @field_validator("database_url")
    @classmethod
    def _require_known_database(cls, url: str) -> str:
        """Says nothing of the URL itself, which may have a password."""
        if not url:
            return url
        scheme, separator, _ = url.partition("://")
        if scheme not in DATABASE_DRIVERS or not separator:
            raise ValueError("must begin with sqlite:// or postgresql://")
        try:
            urlsplit(url).port  # noqa: B018 -- looked at to see whether it is one
        except ValueError:
            raise ValueError(
                "has no valid host and port; write characters such as / @ : of a password as %2F %40 %3A"
            ) from None
        return url
