"""`signin outbox`: what waits while Pub/Sub is away, for operators; works on the database itself."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import msgspec
import typer

from service.cli.client import database_settings, moving_settings
from service.cli.keys import operator
from service.cli.terminal import abandon_output, err, fail, out, sentence_of, table_of, told_as_sentences
from service.config import Settings

if TYPE_CHECKING:
    from service.outbox import Outbox

app = typer.Typer(no_args_is_help=True, help="Events that wait while Pub/Sub is away.")

IMPORT_BATCH = 1000
MAX_LINE_BYTES = 16 * 1024 * 1024
STANDARD_STREAM = Path("-")


class ExportedEvent(msgspec.Struct, kw_only=True):
    """One line of an export; `data` is base64. Only `data` and `attributes` matter to an import."""

    data: bytes
    attributes: dict[str, str]
    event_id: str = ""
    created_at: str = ""
    attempts: int = 0
    parked_reason: str | None = None


@app.command()
def status() -> None:
    """Show how much waits, since when, and why events are parked."""
    with files_told_as_sentences():
        asyncio.run(show_status(database_settings()))


async def show_status(settings: Settings) -> None:
    async with opened(settings) as outbox:
        found = await outbox.status()
        reasons = await outbox.parked_reasons()
    out.print(
        table_of(
            "Outbox",
            ("waiting", "parked", "bytes", "oldest", "room for events", "room for bytes"),
            [
                (
                    found.waiting,
                    found.parked,
                    found.bytes,
                    found.oldest_at,
                    max(0, settings.outbox_max_rows - found.rows),
                    max(0, settings.outbox_max_bytes - found.bytes),
                )
            ],
        )
    )
    if reasons:
        out.print(table_of("Parked", ("reason", "events", "last"), reasons))
        err.print("Mend the cause, then `signin outbox release`.")


@app.command()
def flush() -> None:
    """Publish what waits now. Events that a running service holds at the moment are left to it."""
    with files_told_as_sentences():
        settings = moving_settings()
        with audited(settings, "flush") as about:
            count = about["events"] = asyncio.run(flush_outbox(settings))
        out.print(f"{count:,} events were published.")


async def flush_outbox(settings: Settings) -> int:
    from service.breaker import Breaker
    from service.clients import Clients
    from service.relay import Relay
    from service.topic import Topic, TopicError, refusal

    clients = Clients(settings)
    pause = settings.breaker_open_seconds
    breaker = Breaker(failures=settings.breaker_failures, open_seconds=pause, probe_seconds=pause)
    try:
        if not settings.pubsub_emulator_host:
            await clients.credentials()  # a topic without any is told as one that is away
        async with opened(settings) as outbox:
            return await Relay(Topic(clients, settings), outbox, breaker, settings).flush()
    except TopicError as error:
        fail(f"Pub/Sub does not take events now: {refusal(error.status)}. What was not published still waits")
    finally:
        await clients.close()


@app.command(name="export")
def export_events(
    file: Annotated[Path, typer.Argument(help="Where to write; - is standard output")] = STANDARD_STREAM,
) -> None:
    """Write every event as one JSON object a line, the oldest first. The outbox keeps them."""
    with files_told_as_sentences():
        settings = database_settings()
        with file.open("wb") if file != STANDARD_STREAM else standard_output() as target:
            count = asyncio.run(write_events(settings, target))
        err.print(f"{count:,} events were written.")


async def write_events(settings: Settings, target: BinaryIO) -> int:
    count = 0
    encode = msgspec.json.Encoder().encode
    async with opened(settings) as outbox:
        async for row in outbox.events():
            line = ExportedEvent(
                event_id=row["event_id"],
                data=row["data"],
                attributes=msgspec.json.decode(row["attributes"], type=dict[str, str]),
                created_at=row["created_at"].isoformat(),
                attempts=row["attempts"],
                parked_reason=row["parked_reason"],
            )
            target.write(encode(line) + b"\n")
            count += 1
    return count


@app.command(name="import")
def import_events(
    file: Annotated[Path, typer.Argument(help="What `export` wrote; - is standard input")],
) -> None:
    """Put the events of an export into the outbox, under their own ids; the service publishes them."""
    with files_told_as_sentences():
        settings = moving_settings()
        with (
            file.open("rb") if file != STANDARD_STREAM else standard_input() as source,
            audited(settings, "import") as about,
        ):
            count = asyncio.run(read_events(settings, source, about))
        err.print(f"{count:,} events are in the outbox.")


async def read_events(settings: Settings, source: BinaryIO, about: dict[str, Any]) -> int:
    """Adds the events of `source`, and ends the command at the first line that is none.

    The member `events` of `about` is how many are in the outbox for good.
    """
    decode = msgspec.json.Decoder(ExportedEvent).decode
    count = about["events"] = 0
    batch: list[tuple[bytes, dict[str, str]]] = []
    async with opened(settings) as outbox:
        await outbox.status()
        for number, line in enumerate(lines(source), 1):
            try:
                event = decode(line)
            except msgspec.MsgspecError as error:
                fail(
                    f"line {number} is not an exported event: {error}. The first {count:,} events were taken."
                )
            batch.append((event.data, event.attributes))
            if len(batch) == IMPORT_BATCH:
                await outbox.spool(batch)
                count = about["events"] = count + len(batch)
                batch = []
        if batch:
            await outbox.spool(batch)
            count = about["events"] = count + len(batch)
    return count


def lines(source: BinaryIO) -> Iterator[bytes]:
    while line := source.readline(MAX_LINE_BYTES):
        if line.strip():
            yield line


@app.command()
def release(
    event_id: Annotated[str | None, typer.Option(help="Only the events of this id")] = None,
) -> None:
    """Let parked events be published again, once the cause for which they were parked is mended."""
    with files_told_as_sentences():
        settings = moving_settings()
        with audited(settings, "release") as about:
            if event_id:
                about["event_id"] = event_id
            count = about["events"] = asyncio.run(release_events(settings, event_id))
        out.print(f"{count:,} events wait again.")


async def release_events(settings: Settings, event_id: str | None) -> int:
    async with opened(settings) as outbox:
        return await outbox.release(event_id)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Outbox]:
    """The outbox on the database of the settings."""
    from service.db import Database
    from service.outbox import Outbox

    database = Database(settings)
    try:
        yield Outbox(database, settings)
    finally:
        await database.close()


@contextmanager
def audited(settings: Settings, verb: str) -> Iterator[dict[str, Any]]:
    """Tells the audit log of an act at its end; what the block puts into the mapping is told with it."""
    about: dict[str, Any] = {}
    outcome = "failed"
    try:
        yield about
        outcome = "done"
    finally:
        from service import audit

        audit.done_here(settings, operator(), f"outbox {verb}", outcome, about)


@contextmanager
def files_told_as_sentences() -> Iterator[None]:
    """The same for what a file complains about besides."""
    with told_as_sentences():
        try:
            yield
        except BrokenPipeError:  # as `export | head` ends
            abandon_output()
        except OSError as error:
            fail(sentence_of(error))


@contextmanager
def standard_output() -> Iterator[BinaryIO]:
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


@contextmanager
def standard_input() -> Iterator[BinaryIO]:
    yield sys.stdin.buffer
