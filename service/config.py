"""The settings: environment variables `SIGNIN_...` and a `.env` file, read once and passed as a value."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.errors import ConfigError
from service.launch_environment import LaunchEnvironment

LOCAL_PROJECT = "signin-local"


class Pipeline(BaseModel):
    """A pipeline that jobs may be launched of: its template, and what its jobs get unless asked otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template_path: str = Field(pattern=r"^gs://[^/\s]+/\S+$", max_length=1024)
    template_metadata: Path | None = None
    parameters: dict[str, str] = Field(default_factory=dict)
    environment: LaunchEnvironment = LaunchEnvironment.model_construct()
    reads_subscription: bool = True  # the one of the settings, unless a job names another source


class Settings(BaseSettings):
    """All that differs between a laptop and Google Cloud.

    The three `..._EMULATOR_HOST` variables carry no prefix, because other Google clients read them
    too. Each that is set replaces the Google endpoint of that API by a plain one without credentials.
    """

    model_config = SettingsConfigDict(
        env_prefix="SIGNIN_", env_file=".env", extra="ignore", frozen=True, populate_by_name=True
    )

    # Where things are
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

    # HTTP
    host: str = Field("127.0.0.1", description="Address that the service listens on")
    port: int = Field(
        8080, ge=0, le=65535, description="Port that the service listens on; 0 takes a free one"
    )
    allow_unauthenticated_access: bool = Field(
        False, description="Let anybody who reaches the port use the service, on any address"
    )
    require_authentication: bool = Field(
        False, description="Want a key or a token on loopback too, before there is any key"
    )
    allowed_hosts: str = Field(
        "",
        description="More names, by commas, that the Host header may have; without any, loopback's own names "
        "on loopback and all elsewhere; * allows all",
    )
    docs: bool = Field(True, description="Whether /docs and /openapi.json are there")
    oidc_issuer: str = Field(
        "", description="Issuer of OpenID Connect tokens; empty means that none are taken"
    )
    oidc_audience: str = Field("", description="The aud that a token must have, or several by commas")
    oidc_jwks_url: str = Field(
        "", description="Where the issuer's keys are; empty means that its discovery document says so"
    )
    oidc_scopes: str = Field(
        "", description='What tokens may do, as JSON: `{"email=ci@example.com": ["jobs:write"]}`'
    )
    oidc_keys_seconds: float = Field(
        300.0, gt=0, le=3600, description="How long the issuer's keys are used before they are fetched anew"
    )
    oidc_leeway_seconds: float = Field(
        30.0, ge=0, le=300, description="How far the issuer's clock may be away from ours"
    )
    key_refresh_seconds: float = Field(
        2.0, gt=0, le=60, description="Time after which a revoked key is refused by every process"
    )
    event_requests_per_second: float = Field(
        2000.0, ge=0, description="Rate of single sign-ins of one key, for each process; 0 sets no limit"
    )
    batch_requests_per_second: float = Field(
        50.0, ge=0, description="Rate of batches of one key, for each process; 0 sets no limit"
    )
    control_requests_per_second: float = Field(
        20.0, ge=0, description="Rate of all other requests of one key, for each process; 0 sets no limit"
    )
    max_body_bytes: int = Field(64 * 1024, ge=1024, description="Largest body of one sign-in")
    max_batch_body_bytes: int = Field(5_000_000, ge=1024, description="Largest body of a batch, unpacked too")
    max_batch_events: int = Field(1000, ge=1, le=10_000, description="Most events in a batch")
    max_bodies_bytes: int = Field(
        50_000_000, ge=1024, description="Most bytes of bodies at once, while they come and are worked on"
    )
    body_deadline_seconds: float = Field(10.0, gt=0, description="Longest time that a body may take to come")
    max_header_bytes: int = Field(32 * 1024, ge=1024, description="Largest request line and headers")
    header_deadline_seconds: float = Field(
        10.0, gt=0, description="Longest time until a connection has sent the headers of a request"
    )
    keep_alive_seconds: int = Field(75, ge=1, description="How long a connection waits for its next request")
    max_connections: int = Field(
        2000, ge=1, description="Most connections of a process; beyond, the longest idle one is closed"
    )
    max_event_streams: int = Field(100, ge=1, description="Most histories that are followed at once")
    max_event_ahead_seconds: int = Field(
        24 * 3600, ge=0, description="How far ahead of the clock the date of a sign-in may lie"
    )

    # Publishing
    publish_linger_seconds: float = Field(0.005, ge=0, le=1, description="Longest wait for a batch to fill")
    publish_batch_messages: int = Field(1000, ge=1, le=1000, description="Most messages in one Publish call")
    publish_batch_bytes: int = Field(4_000_000, ge=1024, le=9_000_000, description="Most bytes in one call")
    publish_deadline_seconds: float = Field(10.0, gt=0, le=600, description="Deadline of one Publish call")
    publish_inflight_messages: int = Field(20_000, ge=1, description="Most events waiting for their id")
    publish_inflight_bytes: int = Field(64_000_000, ge=1024, description="Most bytes waiting for their id")

    publish_patience_seconds: float = Field(
        1.0, gt=0, le=60, description="Longest wait for one Publish call before its events go to the outbox"
    )
    breaker_failures: int = Field(
        3, ge=1, description="Failed Publish calls in a row after which events go straight to the outbox"
    )
    breaker_open_seconds: float = Field(
        1.0, gt=0, le=60, description="Time between two tries whether Pub/Sub is back"
    )
    outbox_max_rows: int = Field(1_000_000, ge=1, description="Most events in the outbox")
    outbox_max_bytes: int = Field(1_000_000_000, ge=1024, description="Most bytes of events in the outbox")
    outbox_deadline_seconds: float = Field(
        5.0, gt=0, le=60, description="Deadline of one commit of events to the outbox"
    )

    # Dataflow
    template_path: str = Field(
        "gs://signin-local/templates/user-signin.json", description="Flex Template spec of user-signin"
    )
    template_metadata: Path | None = Field(
        None,
        description="File with the parameters of user-signin; without it, they are read from its template",
    )
    pipelines: dict[str, Pipeline] = Field(
        {},
        description="More pipelines, as JSON: name to `template_path` and, where wanted, "
        "`template_metadata`, `parameters`, `environment`",
    )
    allowed_templates: list[str] = Field(
        [], description="Patterns (`*`) of template paths that an update may name besides the pipeline's own"
    )
    allowed_environment: dict[str, list[str]] = Field(
        {"sdk_container_image": [], "service_account_email": []},
        description="Patterns (`*`) of values that a request may name, by field of the environment, as JSON; "
        "an empty list allows none, a field that is not listed takes any",
    )
    backfill_template_path: str = Field(
        "gs://signin-local/templates/backfill-signin.json",
        description="Flex Template spec of backfill-signin",
    )
    backfill_template_metadata: Path | None = Field(
        None,
        description="As above, of backfill-signin",
    )
    dataflow_deadline_seconds: float = Field(30.0, gt=0, description="Deadline of one Dataflow call")
    reconcile_interval_seconds: float = Field(
        5.0, gt=0, description="Time between two looks at Dataflow; the local stack uses 0.5"
    )
    reconcile_max_calls: int = Field(
        200, ge=1, description="Calls of Dataflow in one look at all jobs after which the rest waits its turn"
    )
    reconcile_lease_seconds: float = Field(
        15.0, gt=0, description="How long a replica that died keeps the others from looking at Dataflow"
    )
    launch_grace_seconds: float = Field(
        120.0, ge=0, description="How long a launch without an answer is looked for before the next try"
    )
    max_workers: int = Field(
        5, ge=1, le=1000, description="Most workers of a job, and as many where it asks for no other number"
    )
    staging_location: str = Field("", description="gs:// path for Dataflow's staging files")
    temp_location: str = Field("", description="gs:// path for Dataflow's temporary files")
    service_account: str = Field("", description="Service account of the workers")
    network: str = Field("", description="VPC network of the workers")
    subnetwork: str = Field("", description="Subnetwork of the workers")

    # Logs
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level logged")
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="auto: text on a terminal, JSON otherwise"
    )
    debug_log: Path | None = Field(None, description="File that gets every record, DEBUG included")

    # Endpoints
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

    @field_validator("allowed_environment")
    @classmethod
    def _require_fields(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        """A misspelt name would allow everything."""
        if unknown := sorted(value.keys() - LaunchEnvironment.model_fields.keys()):
            raise ValueError(f"the environment of a launch has no {', '.join(unknown)}")
        return value

    @property
    def topic_path(self) -> str:
        return f"projects/{self.project}/topics/{self.topic}"

    @property
    def subscription_path(self) -> str:
        return f"projects/{self.project}/subscriptions/{self.subscription}"

    @property
    def async_database_url(self) -> str:
        """The database URL with its asynchronous driver named: aiosqlite or psycopg."""
        url = self.database_url or f"sqlite:///{(self.data_dir / 'signin.db').absolute()}"
        scheme, separator, rest = url.partition("://")
        drivers = {
            "sqlite": "sqlite+aiosqlite",
            "sqlite+aiosqlite": "sqlite+aiosqlite",
            "postgres": "postgresql+psycopg",
            "postgresql": "postgresql+psycopg",
            "postgresql+psycopg": "postgresql+psycopg",
        }
        if scheme not in drivers or not separator:
            raise ConfigError("SIGNIN_DATABASE_URL must begin with sqlite:// or postgresql://")
        return f"{drivers[scheme]}://{rest}"

    @property
    def uses_google_cloud(self) -> bool:
        """Whether any API is Google's own, so that credentials are needed."""
        return not (self.pubsub_emulator_host and self.dataflow_emulator_host)

    @property
    def is_open_at_first(self) -> bool:
        """Whether anybody may use the service as long as there is no key."""
        return is_loopback(self.host) and not self.require_authentication and not self.oidc_issuer

    def require_closed(self, keys_exist: Callable[[Settings], bool] = lambda _: False) -> None:
        """Raises ConfigError where the service would be open to strangers, or closed to everybody.

        `keys_exist` is asked only where it matters: it looks into the database.
        """
        if self.allow_unauthenticated_access or self.oidc_issuer or is_loopback(self.host):
            return
        if not keys_exist(self):
            raise ConfigError(
                f"SIGNIN_HOST={self.host} is reachable from other machines and no authentication "
                "is configured. Make a key with `signin keys create`, set SIGNIN_OIDC_ISSUER, "
                "listen on 127.0.0.1, or set SIGNIN_ALLOW_UNAUTHENTICATED_ACCESS=true to let anybody in."
            )

    def require_startable(self) -> None:
        """Raises ConfigError where starting the service would be in vain."""
        if self.uses_google_cloud and self.project == LOCAL_PROJECT:
            raise ConfigError(
                "SIGNIN_PROJECT is not set. Set it to your Google Cloud project id, "
                "or run `signin up`, which needs no cloud account."
            )


def is_loopback(host: str) -> bool:
    """Tells whether `host` can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
