"""The metadata database: reachable, at the newest schema, and writable."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import make_url

from service.checkup.findings import Trouble
from service.config import Settings
from service.db import Database
from service.errors import DatabaseUnavailableError
from service.outbox import Outbox

_MIGRATE = "signin migrate"


async def database(settings: Settings) -> str:
    """Connects, compares the schema, and writes a row that it takes back."""
    url = make_url(settings.async_database_url)
    is_embedded = not settings.database_url
    if url.get_backend_name() == "sqlite" and not await asyncio.to_thread(Path(url.database or "").exists):
        if is_embedded:
            return "There is no file yet: `signin serve` makes it at its first start."
        raise Trouble(f"There is no file {url.database}.", _MIGRATE)
    database = Database(settings)
    try:
        await database.ping(deadline_seconds=5.0)
        fit = await database.fit()
        if fit.kind == "older" and is_embedded:
            return "It is of an earlier schema: `signin serve` migrates it at its start."
        if not fit.works:
            raise Trouble(fit.sentence, _MIGRATE)
        await Outbox(database, settings).require_writable()
    except DatabaseUnavailableError as error:
        raise Trouble(
            error.detail,
            "Look whether the server runs and takes connections from here, and whether user, password and "
            "name in SIGNIN_DATABASE_URL are right.",
        ) from error
    finally:
        await database.close()
    return f"{fit.sentence} It takes writes."
