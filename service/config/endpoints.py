"""Settings: the addresses of the APIs."""

from __future__ import annotations

from pydantic import AliasChoices, BaseModel, Field


class Endpoints(BaseModel):
    """The addresses of the APIs.

    The three `..._EMULATOR_HOST` variables carry no prefix, because other Google clients read them
    too. Each that is set replaces the Google endpoint of that API by a plain one without credentials.
    """

    pubsub_endpoint: str = Field("pubsub.googleapis.com:443", description="Pub/Sub gRPC endpoint (TLS)")
    dataflow_endpoint: str = Field("dataflow.googleapis.com:443", description="Dataflow gRPC endpoint (TLS)")
    pubsub_emulator_host: str = Field(
        "",
        validation_alias=AliasChoices("PUBSUB_EMULATOR_HOST", "pubsub_emulator_host"),
        description="host:port of a Pub/Sub emulator",
    )
    dataflow_emulator_host: str = Field(
        "",
        validation_alias=AliasChoices("DATAFLOW_EMULATOR_HOST", "dataflow_emulator_host"),
        description="host:port of a Dataflow emulator",
    )
    bigquery_emulator_host: str = Field(
        "",
        validation_alias=AliasChoices("BIGQUERY_EMULATOR_HOST", "bigquery_emulator_host"),
        description="URL of a BigQuery emulator",
    )
    monitoring_endpoint: str = Field(
        "https://monitoring.googleapis.com",
        description="Cloud Monitoring's REST endpoint; http:// is an emulator, asked without credentials",
    )
    storage_endpoint: str = Field(
        "https://storage.googleapis.com",
        description="Cloud Storage's REST endpoint, for template specs; http:// as above",
    )
