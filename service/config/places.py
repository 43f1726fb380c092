"""Settings: where things are."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field

LOCAL_PROJECT = "signin-local"


class Places(BaseModel):
    """Where things are."""

    project: str = Field(LOCAL_PROJECT, min_length=6, description="Google Cloud project id")
    region: str = Field("us-central1", description="Dataflow region")
    topic: str = Field("topic-user-signin", description="Pub/Sub topic that events are published to")
    subscription: str = Field("user-signin-bigquery", description="Subscription that the job reads")
    table: str = Field("user_signin.signins", description="BigQuery table of the rows, as dataset.table")
    dead_letter_table: str = Field(
        "user_signin.dead_letters", description="BigQuery table of the dead letters, as dataset.table"
    )
    data_dir: Path = Field(Path(".signin"), description="Where the local stack and SQLite keep their files")
    database_url: str = Field(
        "", description="SQLAlchemy URL of the metadata database; empty means SQLite in the data directory"
    )
