"""What the checks share: the settings, the connections, and in whose name they ask."""

from __future__ import annotations

import asyncio
from typing import Any

from service.checkup.findings import NotAsked, Trouble
from service.checkup.refusals import LOGIN
from service.clients import Clients, MissingCredentialsError
from service.config import Settings
from service.google_rest import GoogleRest, refresh

_UNKNOWN_MEMBER = "serviceAccount:NAME@PROJECT.iam.gserviceaccount.com"


class Place:
    """One connection to each API for all checks of a run; within one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clients = Clients(settings)
        self.rest = GoogleRest(self.clients)
        self._account: asyncio.Task[str] | None = None

    async def close(self) -> None:
        if self._account:
            self._account.cancel()
            await asyncio.gather(self._account, return_exceptions=True)
        await self.rest.close()
        await self.clients.close()

    @property
    def asks_google(self) -> bool:
        """Whether anything is asked with credentials."""
        settings = self.settings
        return (
            settings.uses_google_cloud
            or not settings.bigquery_emulator_host
            or (settings.storage_endpoint.startswith("https://") and not settings.dataflow_emulator_host)
        )

    async def credentials(self) -> str:
        """The check of the credentials: found, and good for a token."""
        if not self.asks_google:
            raise NotAsked("Emulators are asked without credentials.")
        try:
            account = await self._refreshed()
        except MissingCredentialsError as error:
            raise Trouble(str(error), LOGIN) from error
        return f"They are those of {account or 'an account that has no name'}."

    async def member(self) -> str:
        """Who asks, as IAM names it; a placeholder where that cannot be told."""
        try:
            account = await self._refreshed() if self.asks_google else ""
        except (MissingCredentialsError, Trouble):
            account = ""
        if "@" not in account:
            return _UNKNOWN_MEMBER
        kind = "serviceAccount" if account.endswith(".gserviceaccount.com") else "user"
        return f"{kind}:{account}"

    async def grant(self, role: str, where: str = "") -> str:
        """The command that gives whoever asks a role, on `where` or else on the project."""
        place = where or f"projects add-iam-policy-binding {self.settings.project}"
        return f"gcloud {place} --member={await self.member()} --role={role}"

    async def _refreshed(self) -> str:
        """The account, after it got a token. Raises MissingCredentialsError or Trouble."""
        if self._account is None:
            self._account = asyncio.ensure_future(self._refresh())
        return await asyncio.shield(self._account)

    async def _refresh(self) -> str:
        from google.auth.exceptions import GoogleAuthError

        credentials: Any = await self.clients.credentials()
        try:
            await asyncio.to_thread(refresh, credentials)
        except GoogleAuthError as error:
            raise Trouble(f"The credentials give no token: {error}", LOGIN) from error
        email = getattr(credentials, "service_account_email", None) or getattr(credentials, "account", "")
        return str(email or "")
