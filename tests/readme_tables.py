"""The tables of the README that come from the code. `python -m tests.readme_tables` writes them anew."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from service import errors
from service.config import TOPICS, variable_name, variables
from service.job_state import MEANINGS, STATES, Standing, Verdict, allowed_actions, is_terminal
from service.metrics.families import FAMILIES
from transforms.signin_event import REASONS

README = Path(__file__).parent.parent / "README.md"


UNITS = {"_seconds": "seconds", "_bytes": "bytes", "_per_second": "per second"}
BOUNDS = {"gt": "over", "ge": "from", "lt": "under", "le": "to"}


def settings_table() -> Iterator[str]:
    for topic in TOPICS:
        yield from ("", f"### {variables.topic_of(next(iter(topic.model_fields)))}", "")
        yield "| variable | default | values | meaning |"
        yield "|---|---|---|---|"
        for name, field in topic.model_fields.items():
            value = json.dumps(field.default) if isinstance(field.default, dict | list) else field.default
            default = "" if value in ("", None) else f"`{written(value)}`"
            assert field.description, f"the setting {name} has no description"
            variable = variable_name(name)
            secret = f"; or in the file that `{variable}_FILE` names" if variables.is_secret(field) else ""
            yield f"| `{variable}` | {default} | {values(name, field)} | {field.description}{secret} |"
    yield ""


def written(value: object) -> str:
    """A default as its variable would be written."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def values(name: str, field: FieldInfo) -> str:
    """What the setting may be: its unit and its bounds, or its form."""
    if variables.is_secret(field):
        return "secret"
    unit = next((unit for suffix, unit in UNITS.items() if name.endswith(suffix)), "")
    bounds = [
        f"{word} {written(getattr(rule, key))}"
        for rule in field.metadata
        for key, word in BOUNDS.items()
        if getattr(rule, key, None) is not None
    ]
    if field.annotation is bool:
        return "`true`, `false`"
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    if get_origin(field.annotation) in (dict, list):
        return "JSON"
    if field.annotation in (int, float) and not unit:
        unit = "a number"
    least = [rule.min_length for rule in field.metadata if getattr(rule, "min_length", None)]
    if least:
        return f"at least {least[0]} characters"
    return ", ".join(filter(None, [unit, " ".join(bounds)])) if unit else ""


def variables_table() -> Iterator[str]:
    yield "| variable | meaning |"
    yield "|---|---|"
    for variable, meaning in variables.OTHERS.items():
        yield f"| `{variable}` | {meaning} |"


def problem_types() -> list[type[errors.ProblemError]]:
    members = inspect.getmembers(errors, inspect.isclass)
    return [cls for _, cls in members if issubclass(cls, errors.ProblemError)]


def errors_table() -> Iterator[str]:
    yield "| code | status | retry | meaning |"
    yield "|---|---|---|---|"
    for cls in sorted(problem_types(), key=lambda cls: (cls.status, cls.code)):
        yield f"| `{cls.code}` | {cls.status} | {'yes' if cls.retryable else 'no'} | {cls.title} |"


def reasons_table() -> Iterator[str]:
    yield "| reason | meaning |"
    yield "|---|---|"
    for code, sentence in REASONS.items():
        yield f"| `{code}` | {sentence} |"


def metrics_table() -> Iterator[str]:
    yield "| metric | kind | labels | meaning |"
    yield "|---|---|---|---|"
    for family in FAMILIES:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        yield f"| `{family.name}` | {family.kind} | {labels} | {family.meaning} |"


def job_states_table() -> Iterator[str]:
    yield "| state | meaning | drain | cancel | update | scale |"
    yield "|---|---|:-:|:-:|:-:|:-:|"
    marks = {Verdict.ALLOWED: "yes", Verdict.ALREADY: "is so", Verdict.REFUSED: ""}
    assert set(MEANINGS) == STATES
    for state, meaning in MEANINGS.items():
        permissions = allowed_actions(Standing(state, "RUNNING"))
        cells = [marks[permissions[action].verdict] for action in ("drain", "cancel", "update", "scale")]
        yield f"| `{state}`{' (an end)' if is_terminal(state) else ''} | {meaning} | {' | '.join(cells)} |"


TABLES = {
    "settings": settings_table,
    "other variables": variables_table,
    "errors": errors_table,
    "reasons": reasons_table,
    "metrics": metrics_table,
    "job states": job_states_table,
}


def block(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)


def rendered(text: str) -> str:
    """The README's text with every table as the code says it."""
    for name, table in TABLES.items():
        body = "\n".join(table()) + "\n"
        text, found = block(name).subn(lambda match, body=body: match[1] + body + match[2], text)
        assert found == 1, f"the README has no block {name}"
    return text


if __name__ == "__main__":
    README.write_text(rendered(README.read_text()))
