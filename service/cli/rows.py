"""`signin rows`: the newest rows of the table, and the dead letters, straight from BigQuery."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from service.cli.client import running_settings
from service.cli.terminal import command, fail, out, table_of
from service.config import LOCAL_PROJECT, Settings
from transforms import bigquery_tables
from transforms.bigquery_rows import parse_table

if TYPE_CHECKING:
    from google.cloud import bigquery

QUERY_DEADLINE_SECONDS = 30.0
CALL_SECONDS = 10.0
AWAY_SECONDS = 15.0  # for a call with its repetitions, of which the client's own bound is ten minutes
PAYLOAD_PREVIEW_CHARACTERS = 60


class SigninTables:
    """Reads the two tables of the settings."""

    def __init__(self, settings: Settings) -> None:
        self.client: bigquery.Client = bigquery_tables.client(
            settings.project, settings.bigquery_emulator_host
        )
        self._signins = self._name(settings.table, settings.project)
        self._dead_letters = self._name(settings.dead_letter_table, settings.project)

    @staticmethod
    def _name(table: str, project: str) -> str:
        ref = parse_table(table, project)
        return f"`{ref.project}.{ref.dataset}.{ref.table}`"

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Runs one query; each row is a dictionary by column name.

        Raises GoogleAPIError or OSError about AWAY_SECONDS after BigQuery has ceased to answer.
        """
        from google.cloud.bigquery import DEFAULT_RETRY

        retry = DEFAULT_RETRY.with_timeout(AWAY_SECONDS)
        job = self.client.query(sql, timeout=CALL_SECONDS, retry=retry, job_retry=None)
        found = job.result(timeout=QUERY_DEADLINE_SECONDS, retry=retry, job_retry=None)
        return [dict(row.items()) for row in found]

    def newest(self, limit: int) -> list[dict[str, Any]]:
        return self.query(
            "SELECT userid, date, event_id, published_at FROM "  # noqa: S608 - the name is from the settings
            f"{self._signins} ORDER BY published_at DESC, event_id DESC LIMIT {int(limit)}"
        )

    def dead_letters(self, limit: int) -> list[dict[str, Any]]:
        return self.query(
            "SELECT failed_at, stage, reason, payload, message_id FROM "  # noqa: S608
            f"{self._dead_letters} ORDER BY failed_at DESC LIMIT {int(limit)}"
        )

    def event_ids(self) -> list[str]:
        """The event id of every row, repeated as often as it stands there."""
        return [row["event_id"] for row in self.query(f"SELECT event_id FROM {self._signins}")]  # noqa: S608

    def dead_letter_reasons(self) -> list[str]:
        """The reason of every dead letter."""
        return [row["reason"] for row in self.query(f"SELECT reason FROM {self._dead_letters}")]  # noqa: S608

    def counts(self) -> tuple[int, int, int]:
        """Rows, distinct event ids among them, and dead letters."""
        rows = self.query(
            f"SELECT COUNT(*) AS n, COUNT(DISTINCT event_id) AS d FROM {self._signins}"  # noqa: S608
        )
        letters = self.query(f"SELECT COUNT(*) AS n FROM {self._dead_letters}")  # noqa: S608
        return rows[0]["n"], rows[0]["d"], letters[0]["n"]


def rows(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many")] = 20,
    dead_letters: Annotated[bool, typer.Option("--dead-letters", help="The dead letters instead")] = False,
) -> None:
    """Show the newest rows of the table."""
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    settings = running_settings()
    if not settings.bigquery_emulator_host and settings.project == LOCAL_PROJECT:
        fail(
            f"no local stack is used on {settings.data_dir.absolute()}; start one with `{command('up')}`, "
            "or set SIGNIN_PROJECT to read from Google Cloud"
        )
    try:
        tables = SigninTables(settings)
        table = (
            dead_letter_table(tables.dead_letters(limit)) if dead_letters else row_table(tables.newest(limit))
        )
    except (GoogleAPIError, GoogleAuthError, OSError) as error:
        fail(f"BigQuery does not answer: {error}")
    out.print(table)


def row_table(newest: list[dict[str, Any]]) -> RenderableType:
    cells = [(row["userid"], row["date"], row["event_id"], row["published_at"]) for row in newest]
    return table_of("Sign-ins", ("userid", "date", "event_id", "published_at"), cells)


def dead_letter_table(letters: list[dict[str, Any]]) -> RenderableType:
    cells = [(row["failed_at"], row["stage"], row["reason"], preview(row["payload"])) for row in letters]
    return table_of("Dead letters", ("failed_at", "stage", "reason", "payload"), cells)


def preview(payload: bytes | str | None) -> str:
    """The beginning of a payload, readable whatever its bytes are."""
    raw = base64.b64decode(payload) if isinstance(payload, str) else payload or b""
    text = raw[: PAYLOAD_PREVIEW_CHARACTERS * 4].decode("utf-8", "backslashreplace")
    printable = "".join(c if c.isprintable() else "�" for c in text)
    return printable[:PAYLOAD_PREVIEW_CHARACTERS] + (
        "…" if len(printable) > PAYLOAD_PREVIEW_CHARACTERS else ""
    )
