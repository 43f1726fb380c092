"""The tables of the README that come from the code. `python -m tests.readme_tables` writes them anew."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

from service import errors
from service.config import Settings, variable_name
from service.job_state import MEANINGS, STATES, Standing, Verdict, allowed_actions, is_terminal
from service.metrics.families import FAMILIES
from transforms.signin_event import REASONS

README = Path(__file__).parent.parent / "README.md"


def settings_table() -> Iterator[str]:
    yield "| variable | default | meaning |"
    yield "|---|---|---|"
    for name, field in Settings.model_fields.items():
        value = json.dumps(field.default) if isinstance(field.default, dict | list) else field.default
        default = "" if value in ("", None) else f"`{value}`"
        assert field.description, f"the setting {name} has no description"
        yield f"| `{variable_name(name)}` | {default} | {field.description} |"


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
