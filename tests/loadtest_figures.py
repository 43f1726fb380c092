"""`signin loadtest` run in this process: its exit code, what it prints, and its figures as JSON."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from service.cli import app


def load(*options, **environment):
    """The exit code of the command and what it printed."""
    done = CliRunner().invoke(app, ["loadtest", "--warm-up", "0", *map(str, options)], env=environment)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def figures(*options, **environment):
    code, text = load("--json", *options, **environment)
    return code, json.loads(text[text.index("{") : text.rindex("}") + 1])


def answers(found):
    return {(each["status"], each["code"]): each["events"] for each in found["answers"]}
