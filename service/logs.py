"""Where log records go: text for people on a terminal, JSON for Cloud Logging, everything to a file."""

from __future__ import annotations

import contextvars
import logging
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec

from service.config import Settings

current_request_id: contextvars.ContextVar[str] = contextvars.ContextVar("current_request_id", default="")

_TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s%(request_suffix)s"
_SERVER_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
# Their DEBUG records repeat every frame on the wire, payloads included.
CHATTY = (
    "aiosqlite",
    "alembic",  # two records at INFO for each look at /readyz
    "asyncio",
    "hpack",
    "httpcore",
    "httpx",
    "urllib3",
    "google.auth",
    "sqlalchemy",
)


class JsonFormatter(logging.Formatter):
    """One JSON object for each record, with the field names that Cloud Logging knows."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "severity": record.levelname,
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := current_request_id.get():
            entry["request_id"] = request_id
        entry.update(getattr(record, "fields", {}))  # of records that are made for programs
        if record.exc_info:
            entry["stack_trace"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry).decode()


class TextFormatter(logging.Formatter):
    """One line for each record, and its traceback below it."""

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def format(self, record: logging.LogRecord) -> str:
        request_id = current_request_id.get()
        record.request_suffix = f" [{request_id}]" if request_id else ""
        return super().format(record)


def configure(settings: Settings) -> None:
    """Sends the records of this process, uvicorn's included, where `settings` say; the last call counts."""
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(JsonFormatter() if as_json else TextFormatter())
    stream.setLevel(settings.log_level)
    handlers: list[logging.Handler] = [stream]
    level = stream.level
    if settings.debug_log:
        settings.debug_log.parent.mkdir(parents=True, exist_ok=True)
        debug_file = logging.FileHandler(settings.debug_log, encoding="utf-8")
        debug_file.setFormatter(TextFormatter())
        handlers.append(debug_file)
        level = logging.DEBUG
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
    if not settings.debug_log:
        for name in CHATTY:
            logging.getLogger(name).setLevel(max(level, logging.WARNING))  # each statement at INFO
