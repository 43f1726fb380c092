"""The settings as one value, and what is worked out of them."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from pydantic_settings import BaseSettings, SettingsConfigDict

from service.config.access import Access
from service.config.dataflow import LOCAL_TEMPLATES, Dataflow
from service.config.endpoints import Endpoints
from service.config.http import Http
from service.config.logs import Logs
from service.config.places import DATABASE_DRIVERS, LOCAL_PROJECT, Places
from service.config.publishing import Publishing
from service.errors import ConfigError

TOPICS = (Places, Http, Access, Publishing, Dataflow, Logs, Endpoints)


# The last of them gives the first fields.
class Settings(Endpoints, Logs, Dataflow, Publishing, Access, Http, Places, BaseSettings):
    """All that differs between a laptop and Google Cloud; the fields stand with their topics."""

    model_config = SettingsConfigDict(
        env_prefix="SIGNIN_",
        env_file=".env",
        extra="ignore",  # `sources` complains of what is unknown, all at once and with a hint
        frozen=True,
        populate_by_name=True,
        enable_decoding=False,  # the fields do it, so that broken JSON is told like any other value
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

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
        scheme, _, rest = url.partition("://")
        return f"{DATABASE_DRIVERS[scheme]}://{rest}"

    @property
    def uses_google_cloud(self) -> bool:
        """Whether any API is Google's own, so that credentials are needed."""
        return not (self.pubsub_emulator_host and self.dataflow_emulator_host)

    @property
    def is_open_at_first(self) -> bool:
        """Whether anybody may use the service as long as there is no key."""
        return is_loopback(self.host) and not self.require_authentication and not self.oidc_issuer

    def template_not_set(self, template_path: str) -> str:
        """Why nothing is launched of this template, with the variable to set; empty where it may be.

        A path of the local stack names no template of ours on Google's Dataflow: what the owner of a
        bucket with that name puts there would run as our workers.
        """
        if self.dataflow_emulator_host or not template_path.startswith(LOCAL_TEMPLATES):
            return ""
        variables = {
            self.backfill_template_path: "SIGNIN_BACKFILL_TEMPLATE_PATH",
            self.template_path: "SIGNIN_TEMPLATE_PATH",
        }
        if variable := variables.get(template_path):
            return f"{variable} is not set, and Google's Dataflow cannot use {template_path}."
        return (
            f"{template_path} is a path of the local stack, which Google's Dataflow cannot use: name a "
            "template of yours (SIGNIN_PIPELINES, or the template_path of an update)."
        )

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
