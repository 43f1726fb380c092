"""The metadata database: reachable, at the newest schema, and writable."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from sqlalchemy import make_url

from service.checkup.findings import Trouble
from service.config import Settings
from service.db import Database
from service.db.engines import is_there
from service.errors import DatabaseUnavailableError
from service.outbox import Outbox

_MIGRATE = "signin migrate"


async def database(settings: Settings) -> str:
    """Connects, compares the schema, and writes a row that it takes back."""
    url = make_url(settings.async_database_url)
    is_embedded = not settings.database_url
    if url.get_backend_name() == "sqlite" and not await asyncio.to_thread(is_there, url.database or ""):
        if is_embedded:
            await asyncio.to_thread(_require_room, url.database or "")
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


def _require_room(file: str) -> None:
    """Raises Trouble unless the file's directory takes one, or the nearest one above it that is there.

    With a file that has no name and is gone at once: permissions alone do not tell of a read-only mount.
    """
    directory = Path(file).absolute().parent
    nearest = next(each for each in (directory, *directory.parents) if is_there(each))
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise Trouble(
            f"There is no file yet, and none can be made in {directory}: {nearest}: {error.strerror}.",
            "Set SIGNIN_DATA_DIR to a directory that can be written.",
        ) from error
