"""Where log records go: text for people on a terminal, JSON for Cloud Logging, everything to a file."""

from __future__ import annotations

import contextvars
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec

from service.config import Settings
from transforms import trace_context
from transforms.trace_context import current_traceparent

current_request_id: contextvars.ContextVar[str] = contextvars.ContextVar("current_request_id", default="")

_TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s%(request_suffix)s"
_SERVER_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
# Their DEBUG records repeat every statement, header and frame on the wire, payloads and passwords included:
# they say nothing below WARNING, wherever it goes.
REPEATING = ("aiosqlite", "google", "grpc", "hpack", "httpcore", "sqlalchemy", "urllib3")
# Too many records to be read, except in the file that gets everything.
CHATTY = (
    "alembic",  # two records at INFO for each look at /readyz
    "asyncio",
    "httpx",
)
_TRACE = "logging.googleapis.com/trace"
_SPAN = "logging.googleapis.com/spanId"
_SAMPLED = "logging.googleapis.com/trace_sampled"
_LABELS = "logging.googleapis.com/labels"
_SOURCE = "logging.googleapis.com/sourceLocation"


# What PostgreSQL adds to an error: the row that did not fit, the JSON that it stopped in.
_QUOTING = re.compile(
    r"^(DETAIL|CONTEXT):.*(?:\n(?!\s*$|The above |\[SQL|\(Background|Traceback|  File ).*)*", re.MULTILINE
)


def _without_data(traceback: str) -> str:
    return _QUOTING.sub(r"\1: (left out)", traceback)


class JsonFormatter(logging.Formatter):
    """One JSON object for each record, with the field names that Cloud Logging knows.

    https://cloud.google.com/logging/docs/structured-logging. A record's `http_request` (a mapping with the
    names of LogEntry's HttpRequest) becomes the entry's.
    """

    def __init__(self, project: str) -> None:
        super().__init__()
        self._traces = f"projects/{project}/traces/"

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "severity": record.levelname,
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := current_request_id.get():
            entry["request_id"] = request_id
            entry[_LABELS] = {"request_id": request_id}
        if place := trace_context.parse(current_traceparent.get()):
            entry[_TRACE] = self._traces + place.trace_id
            entry[_SPAN] = place.span_id
            entry[_SAMPLED] = place.sampled
        if http_request := getattr(record, "http_request", None):
            entry["httpRequest"] = http_request
        if record.levelno >= logging.ERROR:
            entry[_SOURCE] = {
                "file": record.pathname,
                "line": str(record.lineno),
                "function": record.funcName or "",
            }
        entry.update(getattr(record, "fields", {}))  # of records that are made for programs
        if record.exc_info:
            entry["stack_trace"] = _without_data(self.formatException(record.exc_info))
        return msgspec.json.encode(entry).decode()


class TextFormatter(logging.Formatter):
    """One line for each record, and its traceback below it."""

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def format(self, record: logging.LogRecord) -> str:
        request_id = current_request_id.get()
        place = trace_context.parse(current_traceparent.get())
        ids = " ".join(each for each in (request_id, place and place.trace_id) if each)
        record.request_suffix = f" [{ids}]" if ids else ""
        return _without_data(super().format(record))  # whichever handler has rendered the traceback before


def handlers_of(settings: Settings) -> list[logging.Handler]:
    """What writes records where `settings` say: to standard error, and all of them to the debug log."""
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(JsonFormatter(settings.project) if as_json else TextFormatter())
    stream.setLevel(settings.log_level)
    handlers: list[logging.Handler] = [stream]
    if settings.debug_log:
        settings.debug_log.parent.mkdir(parents=True, exist_ok=True)
        debug_file = logging.FileHandler(settings.debug_log, encoding="utf-8")
        debug_file.setFormatter(TextFormatter())
        handlers.append(debug_file)
    return handlers


def configure(settings: Settings) -> None:
    """Sends the records of this process, uvicorn's included, where `settings` say; the last call counts."""
    handlers = handlers_of(settings)
    level = min(handler.level or logging.DEBUG for handler in handlers)
    root = logging.getLogger()
    for old in root.handlers[:]:
        if getattr(old, "made_by_signin", False):
            root.removeHandler(old)
            old.close()
    for handler in handlers:
        handler.made_by_signin = True  # type: ignore[attr-defined]
        root.addHandler(handler)
    root.setLevel(level)
    for name in _SERVER_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    quiet = REPEATING if settings.debug_log else REPEATING + CHATTY
    for name in quiet:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
