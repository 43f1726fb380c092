"""Which sign-ins of a load are in the table: every one that was answered for, and how often."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from service.config import Settings
from service.load.signins import UNKNOWN, Signins
from transforms import bigquery_tables
from transforms.bigquery_rows import parse_table

QUERY_DEADLINE_SECONDS = 60.0
POLL_SECONDS = 1.0
MOST_NAMED = 10


@dataclass
class Arrivals:
    """`lost` are events that were answered with 2xx and are not there, `copies` rows beyond the first.

    `unanswered` are events that are there although there was no answer, `strange` those that were refused.
    """

    expected: int = 0
    rows: int = 0
    lost: int = 0
    copies: int = 0
    unanswered: int = 0
    strange: int = 0
    seconds: float = 0.0
    lost_ids: list[str] = field(default_factory=list)


class Table:
    """The rows of one run, told by the event ids."""

    def __init__(self, settings: Settings, signins: Signins, since: datetime) -> None:
        self._client = bigquery_tables.client(settings.project, settings.bigquery_emulator_host)
        ref = parse_table(settings.table, settings.project)
        self._of_run = (
            f"FROM `{ref.project}.{ref.dataset}.{ref.table}` "
            "WHERE date >= @since AND STARTS_WITH(event_id, @prefix)"
        )
        self._parameters = {"since": ("TIMESTAMP", since), "prefix": ("STRING", f"{signins.run}-")}
        self._signins = signins

    def _query(self, sql: str) -> Any:
        from google.cloud import bigquery

        bound = [bigquery.ScalarQueryParameter(name, *given) for name, given in self._parameters.items()]
        config = bigquery.QueryJobConfig(query_parameters=bound)
        job = self._client.query(sql, job_config=config, timeout=QUERY_DEADLINE_SECONDS)
        return job.result(timeout=QUERY_DEADLINE_SECONDS)

    def await_all(self, deadline_seconds: float, on_look: Callable[[int], object]) -> Arrivals:
        """Looks until every event that was answered for is there, or the time is over."""
        began = time.monotonic()
        expected = sum(1 for _ in self._signins.accepted())
        while True:
            (row,) = self._query(f"SELECT COUNT(DISTINCT event_id) AS n {self._of_run}")
            on_look(row["n"])
            is_late = time.monotonic() - began > deadline_seconds
            if row["n"] >= expected or is_late:
                found = self._compared(expected)
                if not found.lost or is_late:
                    found.seconds = time.monotonic() - began
                    return found
            time.sleep(POLL_SECONDS)

    def _compared(self, expected: int) -> Arrivals:
        found = Arrivals(expected=expected)
        there = bytearray(len(self._signins.fates))
        for row in self._query(f"SELECT event_id, COUNT(*) AS n {self._of_run} GROUP BY event_id"):
            found.rows += row["n"]
            found.copies += row["n"] - 1
            number = self._signins.number_of(row["event_id"])
            if number is not None and number < len(there):
                there[number] = 1
        accepted = set(self._signins.accepted()) if expected else set()
        lost = [number for number in sorted(accepted) if not there[number]]
        found.lost = len(lost)
        found.lost_ids = [self._signins.id_of(number) for number in lost[:MOST_NAMED]]
        for number, is_there in enumerate(there):
            if is_there and number not in accepted:
                if self._signins.fates[number] == UNKNOWN:
                    found.unanswered += 1
                else:
                    found.strange += 1
        return found

    def close(self) -> None:
        self._client.close()
