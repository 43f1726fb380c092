"""Whether Google can be talked to, found out before any library falls back to a login in a browser."""

from __future__ import annotations

import os
from typing import Any

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
_REMEDY = (
    "Run `gcloud auth application-default login`, or set PUBSUB_EMULATOR_HOST and BIGQUERY_EMULATOR_HOST "
    "to use local servers."
)


class CredentialsError(Exception):
    """There are no credentials, or none that work; the message names the command that makes them."""


def pubsub_emulator() -> str:
    """The `host:port` of the Pub/Sub emulator, empty when Google's own service is meant."""
    return os.environ.get("PUBSUB_EMULATOR_HOST", "")


def bigquery_emulator() -> str:
    """The URL of the BigQuery emulator, empty when Google's own service is meant."""
    return os.environ.get("BIGQUERY_EMULATOR_HOST", "")


def bigquery_storage_emulator() -> str:
    """The `host:port` of an emulator of the Storage Write API, empty where there is none."""
    return os.environ.get("BIGQUERY_STORAGE_EMULATOR_HOST", "")


def application_default() -> Any:
    """Application Default Credentials. Raises CredentialsError where there are none."""
    import google.auth
    from google.auth.exceptions import GoogleAuthError

    try:
        credentials, _ = google.auth.default(scopes=SCOPES)
    except GoogleAuthError as error:
        raise CredentialsError(f"No Google credentials: {error} {_REMEDY}") from error
    return credentials


def refused(purpose: str, error: Exception) -> CredentialsError:
    """What to raise of a `GoogleAuthError` of credentials that were found, and what they were for."""
    why = error.args[0] if error.args else type(error).__name__  # the others are Google's whole answer
    return CredentialsError(f"{purpose}, for there are no Google credentials that work: {why}. {_REMEDY}")


def require_for_emulated() -> None:
    """Raises CredentialsError if Pub/Sub or BigQuery is Google's own and there are no credentials."""
    if not (pubsub_emulator() and bigquery_emulator()):
        application_default()
