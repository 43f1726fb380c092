"""`signin keys`: API keys, for operators; works on the database itself, so it needs no key."""

from __future__ import annotations

import asyncio
import getpass
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from service.cli.client import database_settings
from service.cli.terminal import err, fail, out, table_of, told_as_sentences
from service.config import Settings
from service.errors import ConfigError

if TYPE_CHECKING:
    from service.auth.keys import NewKey
    from service.db import Database
    from service.models import ApiKey, KeyEvent

app = typer.Typer(no_args_is_help=True, help="API keys: who may use the service, and for what.")

_DURATION = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
NEVER = "never"
SAME: Literal["same"] = "same"

Json = Annotated[bool, typer.Option("--json", help="Print JSON")]
KeyId = Annotated[str, typer.Argument(help="Id of the key, as `signin keys list` shows it")]
ExpiresIn = Annotated[str, typer.Option("--expires-in", help="Such as 12h or 90d, or never")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who will use it; the history of jobs says this name")],
    scope: Annotated[list[str], typer.Option("--scope", help="What it may do; give it more than once")],
    expires_in: ExpiresIn = "90d",
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once: nothing keeps it."""
    with told_as_sentences():
        from service.auth import keys, scopes

        if not keys.is_name(name):
            raise ConfigError(f"{name!r} is no name: write 1 to 64 of A-Z a-z 0-9 . _ -")
        allowed = _known(scopes.known, scope)
        lifetime = duration(expires_in)
        new = asyncio.run(make(database_settings(), name, allowed, lifetime))
        show_new(new, as_json=as_json)


async def make(settings: Settings, name: str, scopes: frozenset[str], lifetime: timedelta | None) -> NewKey:
    from service.auth import key_store, keys
    from service.models import utc_now

    now = utc_now()
    new = keys.generate(name, scopes, now, expiry(now, lifetime))
    await make_embedded(settings)
    async with opened(settings) as database:
        try:
            await key_store.insert(database, new.row, now, operator())
        except key_store.NameTakenError:
            fail(f"there is a key {name} that is good; rotate or revoke it, or choose another name")
    return new


@app.command("list")
def list_keys(as_json: Json = False) -> None:
    """List all keys, the newest first; their secrets are nowhere."""
    with told_as_sentences():
        rows = [facts(row) for row in asyncio.run(everything(database_settings()))]
    if as_json:
        print_json(rows)
        return
    columns = ("id", "name", "scopes", "state", "created_at", "expires_at", "last_used_at")
    cells = [[" ".join(row[each]) if each == "scopes" else row[each] for each in columns] for row in rows]
    out.print(table_of("Keys", [each.removesuffix("_at").replace("_", " ") for each in columns], cells))


async def everything(settings: Settings) -> list[ApiKey]:
    from service.auth import key_store

    async with opened(settings) as database:
        return list(await key_store.everything(database))


@app.command()
def revoke(key_id: KeyId, as_json: Json = False) -> None:
    """End a key. Running services refuse it within SIGNIN_KEY_REFRESH_SECONDS."""
    with told_as_sentences():
        row = asyncio.run(end(database_settings(), key_id))
        if as_json:
            print_json(facts(row))
        else:
            out.print(f"The key {row.id} ({row.name}) is revoked.", highlight=False)


async def end(settings: Settings, key_id: str) -> ApiKey:
    from service.auth import key_store
    from service.models import utc_now

    async with opened(settings) as database:
        try:
            return await key_store.revoke(database, key_id, utc_now(), operator())
        except key_store.KeyNotFoundError:
            fail(f"there is no key {key_id}")


@app.command()
def rotate(
    key_id: KeyId,
    overlap: Annotated[
        str, typer.Option(help="How long the old key stays good at most, such as 24h")
    ] = "24h",
    expires_in: Annotated[
        str | None,
        typer.Option("--expires-in", help="Such as 12h or 90d, or never; as long as the old key had"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key in the place of another, with its name and scopes; both are good for a while."""
    with told_as_sentences():
        given = duration(expires_in) if expires_in is not None else SAME
        both = duration(overlap)
        if both is None:
            raise ConfigError("--overlap must end: to keep both keys, make another one")
        new = asyncio.run(turn_over(database_settings(), key_id, both, given))
        show_new(new, as_json=as_json)
        if not as_json:
            err.print(f"The old key {key_id} stays good for {overlap} at most.", highlight=False)


async def turn_over(
    settings: Settings, key_id: str, overlap: timedelta, given: timedelta | Literal["same"] | None
) -> NewKey:
    """The new key: good for `given`, as long as the old one was, or without an end."""
    from service.auth import key_store, keys
    from service.models import utc_now

    now = utc_now()
    async with opened(settings) as database:
        try:
            old = await key_store.good(database, key_id, now)
            lifetime = lifetime_of(old) if given == SAME else given
            new = keys.generate(
                old.name, frozenset(old.scopes.split()), now, expiry(now, lifetime), replaces=old.id
            )
            await key_store.replace(database, key_id, new.row, now, now + overlap, operator())
        except key_store.KeyNotFoundError:
            fail(f"there is no key {key_id} that is good")
    return new


@app.command()
def history(
    key_id: Annotated[str | None, typer.Argument(help="Only what became of this key")] = None,
    as_json: Json = False,
) -> None:
    """Tell who made, rotated and revoked keys, the newest first."""
    with told_as_sentences():
        events = asyncio.run(what_happened(database_settings(), key_id))
    rows = [event.model_dump(include={"at", "key_id", "kind", "actor"}) for event in events]
    if as_json:
        print_json(rows)
        return
    columns = ("at", "key_id", "kind", "actor")
    heads = [each.replace("_", " ") for each in columns]
    out.print(table_of("History of keys", heads, [[row[each] for each in columns] for row in rows]))


async def what_happened(settings: Settings, key_id: str | None) -> list[KeyEvent]:
    from service.auth import key_store

    async with opened(settings) as database:
        return list(await key_store.history(database, key_id))


def operator() -> str:
    """Who runs this command, for the history: `cli:` and the name at this machine, or its number."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user may have no name
        return f"cli:uid-{os.getuid()}"


def show_new(new: NewKey, *, as_json: bool) -> None:
    """Prints a new key: alone on standard output, so that a script can take it from there."""
    if as_json:
        print_json(facts(new.row) | {"key": new.text})
        return
    typer.echo(new.text)
    ends = new.row.expires_at.isoformat(timespec="minutes") if new.row.expires_at else NEVER
    err.print(f"id {new.row.id}, scopes {new.row.scopes}, expires {ends}", highlight=False, soft_wrap=True)
    err.print("Keep it now: it is shown this once.")


def facts(row: ApiKey) -> dict[str, Any]:
    """What may be told of a key."""
    from service.models import utc_now

    state = "good"
    if row.revoked_at:
        state = "revoked"
    elif row.expires_at and row.expires_at <= utc_now():
        state = "expired"
    return {
        "id": row.id,
        "name": row.name,
        "scopes": row.scopes.split(),
        "state": state,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
        "last_used_at": row.last_used_at,
        "replaces": row.replaces,
    }


def print_json(value: object) -> None:
    typer.echo(msgspec.json.encode(value).decode())


def duration(text: str) -> timedelta | None:
    """A time such as 90d; None for `never`. Raises ConfigError."""
    if text == NEVER:
        return None
    found = _DURATION.fullmatch(text)
    if not found:
        raise ConfigError(f"{text!r} is no duration: write it as 30m, 12h or 90d, or never")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def lifetime_of(row: ApiKey) -> timedelta | None:
    """How long a key was made to be good, or is since it was replaced; None where it has no end."""
    return None if row.expires_at is None else row.expires_at - row.created_at


def expiry(now: datetime, lifetime: timedelta | None) -> datetime | None:
    return None if lifetime is None else now + lifetime


def _known(known: Any, names: list[str]) -> frozenset[str]:
    try:
        found: frozenset[str] = known(each for name in names for each in name.replace(",", " ").split())
    except ValueError as error:
        raise ConfigError(f"--scope: {error}") from None
    return found


async def make_embedded(settings: Settings) -> None:
    """Makes the embedded database where it is missing and says so, or brings its schema up to date.

    Only for the first key: an empty database in the place of one that is away for a moment would turn all
    good keys into refusals.
    """
    from service.db import migrate, new_file

    if settings.database_url:
        return
    made = new_file(settings)
    await asyncio.to_thread(migrate, settings)
    if made:
        err.print(f"made a new database at {made}", highlight=False, markup=False, soft_wrap=True)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Database]:
    """The database of the settings, as it is."""
    from service.db import Database

    database = Database(settings)
    try:
        yield database
    finally:
        await database.close()
