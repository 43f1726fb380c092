"""Log records: their form, where they go, and what is not in them."""

from __future__ import annotations

import json
import logging

import pytest

from service import logs
from service.config import Settings
from service.db import migrate
from tests.serving import JSON, serving, settings_for
from transforms.trace_context import current_traceparent


@pytest.fixture(autouse=True)
def outside_of_any_request():
    # What a fixture asked the service may have left its place in this context.
    tokens = logs.current_request_id.set(""), current_traceparent.set("")
    yield
    logs.current_request_id.reset(tokens[0])
    current_traceparent.reset(tokens[1])


@pytest.fixture(autouse=True)
def loggers_as_before():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in (*logs.CHATTY, *logs.REPEATING)}
    yield
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def settings(**values):
    return Settings(_env_file=None, **values)


def test_without_a_terminal_a_record_is_one_json_object_with_cloud_loggings_names(capsys):
    logs.configure(settings())
    logging.getLogger("a.b").warning("lost %d", 3)
    [line] = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert entry.pop("time").endswith("+00:00")
    assert entry == {"severity": "WARNING", "logger": "a.b", "message": "lost 3"}


def test_a_traceback_and_the_request_id_are_members_of_the_json_object(capsys):
    logs.configure(settings(log_format="json"))
    token = logs.current_request_id.set("r-1")
    logging.getLogger("a").error("it failed", exc_info=ValueError("broken"))
    logs.current_request_id.reset(token)
    entry = json.loads(capsys.readouterr().err)
    assert entry["request_id"] == "r-1"
    assert entry["stack_trace"] == "ValueError: broken"


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("03", True)])
def test_a_record_belongs_to_the_trace_of_its_request_under_cloud_loggings_names(capsys, flags, sampled):
    logs.configure(settings(log_format="json", project="my-project"))
    token = current_traceparent.set(f"00-{'ab' * 16}-{'cd' * 8}-{flags}")
    id_token = logs.current_request_id.set("r-1")
    logging.getLogger("a").error("broke", extra={"http_request": {"status": 500}})
    logs.current_request_id.reset(id_token)
    current_traceparent.reset(token)
    entry = json.loads(capsys.readouterr().err)
    assert entry["logging.googleapis.com/trace"] == f"projects/my-project/traces/{'ab' * 16}"
    assert entry["logging.googleapis.com/spanId"] == "cd" * 8
    assert entry["logging.googleapis.com/trace_sampled"] is sampled
    assert entry["logging.googleapis.com/labels"] == {"request_id": "r-1"}
    assert entry["httpRequest"] == {"status": 500}
    assert entry["logging.googleapis.com/sourceLocation"]["file"] == __file__


def test_a_callers_malformed_trace_is_not_logged(capsys):
    logs.configure(settings(log_format="json"))
    token = current_traceparent.set('00-"}hidden')
    logging.getLogger("a").info("hello")
    current_traceparent.reset(token)
    assert "hidden" not in capsys.readouterr().err


def test_what_postgresql_quotes_of_a_row_is_left_out_of_a_traceback(capsys):
    logs.configure(settings(log_format="text"))
    error = RuntimeError("outer")
    quoted = "DETAIL:  Failing row contains (1, hidden\nhidden).\nCONTEXT:  hidden"
    error.__cause__ = ValueError(f"it does not fit\n{quoted}")
    logging.getLogger("a").error("broke", exc_info=error)
    text = capsys.readouterr().err
    assert "hidden" not in text
    assert "it does not fit" in text
    assert "RuntimeError: outer" in text


def test_text_for_people_is_one_line(capsys):
    logs.configure(settings(log_format="text"))
    logging.getLogger("a.b").info("hello")
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("INFO    a.b: hello")


def test_the_debug_log_gets_every_record_and_the_terminal_does_not(tmp_path, capsys):
    path = tmp_path / "deep" / "debugging.log"
    logs.configure(settings(debug_log=path, log_level="WARNING"))
    logging.getLogger("a").debug("small")
    logging.getLogger("httpx").debug("smaller")
    logging.getLogger("a").warning("big")
    text = path.read_text()
    assert ["small" in text, "smaller" in text, "big" in text] == [True, True, True]
    assert "small" not in capsys.readouterr().err


def test_the_servers_own_loggers_go_the_same_way(capsys):
    logging.getLogger("uvicorn.error").addHandler(logging.StreamHandler())
    logs.configure(settings(log_format="json"))
    logging.getLogger("uvicorn.error").info("started")
    assert [json.loads(line)["logger"] for line in capsys.readouterr().err.splitlines()] == ["uvicorn.error"]


def test_configuring_twice_does_not_double_the_records(capsys):
    logs.configure(settings())
    logs.configure(settings())
    logging.getLogger("a").warning("once")
    assert len(capsys.readouterr().err.splitlines()) == 1


async def test_a_look_at_readiness_is_not_logged(tmp_path, capsys):
    logs.configure(settings())
    migrate(settings(data_dir=tmp_path))
    async with serving(settings_for(tmp_path)) as client:
        capsys.readouterr()
        await client.get("/readyz")
        assert "alembic" not in capsys.readouterr().err


async def test_no_payload_is_logged_at_info_or_above(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG):
        async with serving(settings_for(tmp_path)) as client:
            for body in (
                b'{"userid": "hidden-1", "date": "2020-01-01"}',
                b'{"hidden-1": "hidden-1"}',
                b"hidden-1",
            ):
                await client.post("/events/signin", content=body, headers=JSON)
    loud = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert not [record for record in loud if "hidden-1" in record.getMessage()]
