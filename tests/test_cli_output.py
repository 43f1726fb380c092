"""What the commands print, of values that are given."""

from __future__ import annotations

import io
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from service.cli import app
from service.cli.client import problem_sentence
from service.cli.demo import BROKEN_MESSAGES, Arrival, look
from service.cli.emit import EmitReport
from service.cli.job_reports import show_event, show_job
from service.cli.rows import preview
from service.cli.terminal import cell, table_of
from tests.serving import NOBODY


class Tables:
    """What `look` reads, with the answer given."""

    def __init__(self, ids, reasons):
        self.event_ids = lambda: ids
        self.dead_letter_reasons = lambda: reasons


ALL_REASONS = list(BROKEN_MESSAGES.values())


@pytest.mark.parametrize(
    ("rows", "reasons", "complaint"),
    [
        (["a", "b"], ALL_REASONS, ""),
        (["a"], ALL_REASONS, "1 accepted events are not in the table"),
        (["a", "b", "b"], ALL_REASONS, "1 rows are there that nobody sent, or twice"),
        (["a", "b", "c"], ALL_REASONS, "1 rows are there that nobody sent, or twice"),
        (["a", "b"], ALL_REASONS[1:], "dead letters are"),
    ],
)
def test_the_demo_complains_of_anything_that_is_not_exactly_once(rows, reasons, complaint):
    arrival = look(Tables(rows, reasons), EmitReport(accepted=["a", "b"]))
    assert isinstance(arrival, Arrival)
    assert complaint in arrival.complaint()
    assert bool(complaint) == bool(arrival.complaint())


def test_a_job_is_shown_with_the_bounds_and_restarts_that_were_asked_for(monkeypatch):
    console = Console(width=200, record=True, file=io.StringIO())
    monkeypatch.setattr("service.cli.job_reports.out", console)
    job = {"id": "j-1", "name": "n", "state": "RUNNING", "restart_policy": "on-failure", "restarts": 2}
    show_job(job | {"restart_limit": 3, "max_workers": 9, "scaling_pending": True, "restart_at": "noon"})
    said = console.export_text()
    assert re.search(r"workers +to 9, not taken by Dataflow yet\n", said)
    assert re.search(r"restarts +2 of 3, next at noon\n", said)


@pytest.mark.parametrize(
    ("actor", "words"), [("key:adm", "by key:adm"), ("api", "by api"), ("service", ""), ("[b]x", "by [b]x")]
)
def test_an_entry_of_a_history_says_who_did_it_unless_the_service_did_by_itself(monkeypatch, actor, words):
    console = Console(width=200, record=True, file=io.StringIO())
    monkeypatch.setattr("service.cli.job_reports.out", console)
    event = {"sequence": 3, "at": "2026-01-01T00:00:00.000Z", "kind": "drain_requested", "actor": actor}
    show_event(event | {"detail": {"deadline_seconds": 60}})
    said = console.export_text().strip()
    assert said == f"3 2026-01-01T00:00:00.000 drain_requested deadline_seconds=60 {words}".strip()


def test_an_entry_of_a_history_is_one_line_whatever_its_cause(monkeypatch):
    console = Console(width=30, record=True, file=io.StringIO())
    monkeypatch.setattr("service.cli.job_reports.out", console)
    detail = {"cause": "Traceback:\n  File x\r\n\nValueError: \x1b[2J[b]\n", "again": False, "ids": ["a"]}
    event = {"sequence": 3, "at": "2026-01-01T00:00:00.000Z", "kind": "failed", "actor": "service"}
    show_event(event | {"detail": detail | {"drained": True, "number": 0}})
    told = "cause=Traceback: | File x | ValueError: �[2J[b] again=no"
    assert console.export_text() == (
        f'    3 2026-01-01T00:00:00.000 failed {told} ids=["a"] drained=yes number=0\n'
    )


def test_an_answer_without_a_key_names_the_variable_for_it():
    problem = {"title": "Authentication is required", "detail": "d", "code": "authentication_required"}
    assert "SIGNIN_API_KEY" in problem_sentence(httpx.Response(401, json=problem))
    assert "SIGNIN_API_KEY" not in problem_sentence(httpx.Response(403, json=problem))


JOB = ("01m861ya7hg4t1e304g9", "by-hand", "[b]", "2026-11-24T13:13:08.123456Z", None)


@pytest.mark.parametrize(("width", "is_table"), [(60, False), (79, False), (100, True), (1000, True)])
def test_a_table_that_would_break_into_slivers_is_a_block_for_each_row(monkeypatch, width, is_table):
    console = Console(width=width, record=True, file=io.StringIO())
    monkeypatch.setattr("service.cli.terminal.out", console)
    columns = ("id", "name", "state", "created_at", "cause")
    console.print(table_of("Jobs", columns, [JOB, (*JOB[:4], "c" * 70)]))
    said = console.export_text()
    assert ("created_at: " not in said) == is_table
    if not is_table:
        block = "id: 01m861ya7hg4t1e304g9\nname: by-hand\nstate: [b]\ncreated_at: 2026-11-24T13:13:08Z\n"
        assert said.startswith(f"Jobs\n\n{block}\n{block}cause: ")
    assert max(map(len, said.splitlines())) <= width


def test_a_table_that_fits_stays_one_on_a_narrow_terminal(monkeypatch):
    console = Console(width=60, record=True, file=io.StringIO())
    monkeypatch.setattr("service.cli.terminal.out", console)
    console.print(table_of("Replays", ("a", "b", "c", "d"), [(1, 2, 3, 4)]))
    assert "┃ a ┃ b ┃ c ┃ d ┃" in console.export_text()


def test_no_cell_of_a_table_can_be_taken_for_markup_or_break_the_terminal():
    console = Console(width=80, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(cell("[red]x[/red]"))
    assert captured.get().strip() == "[red]x[/red]"
    assert "\x1b" not in preview(b"\x1b[2Jgone")
    assert preview(b"a" * 1000) == "a" * 60 + "…"


def test_a_report_counts_events_a_second_over_the_whole_run():
    report = EmitReport(accepted=["a", "b"], failures=Counter(), seconds=0.5)
    assert report.events_per_second == 4


def test_rows_gives_up_on_a_bigquery_that_is_away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", NOBODY)
    monkeypatch.setattr("service.cli.rows.AWAY_SECONDS", 0.5)
    result = CliRunner().invoke(app, ["rows"])
    assert result.exit_code == 1
    assert "BigQuery does not answer" in result.stderr


class _LoginPage(BaseHTTPRequestHandler):
    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Please sign in</html>")

    def do_POST(self):
        self.do_GET()

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("words", [["jobs", "list"], ["jobs", "launch"], ["emit", "--count", "2"]])
def test_an_answer_that_is_none_of_the_service_is_told_in_a_sentence(words):
    with ThreadingHTTPServer(("127.0.0.1", 0), _LoginPage) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        result = CliRunner().invoke(app, [*words, "--url", f"http://127.0.0.1:{server.server_port}"])
        server.shutdown()
    assert result.exit_code == 1
    assert "answered 200 with what is no answer of this service" in " ".join(result.output.split())
    assert isinstance(result.exception, SystemExit)
