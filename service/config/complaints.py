"""What is wrong with the settings, as sentences with the variable's name and never with a secret."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from service.config.variables import SECRETS, is_link_address, variable_name

_MOST_CHARACTERS = 80
_RULES = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "literal_error": "must be {expected}",
    "dict_type": "must be a JSON object",
    "list_type": "must be a JSON array",
    "model_type": "must be a JSON object",
    "missing": "is missing",
    "extra_forbidden": "is not known",
    "value_error": "{error}",
}
_WITHOUT_VALUE = frozenset({"missing", "extra_forbidden", "value_error"})


def sentences(error: ValidationError) -> Iterator[str]:
    """One sentence for each invalid value."""
    for each in error.errors():
        field, *inside = map(str, each["loc"])
        variable = variable_name(field)
        place = f"{variable}, {'.'.join(inside)}," if inside else variable
        context: dict[str, Any] = each.get("ctx", {})
        rule = _RULES.get(each["type"], each["msg"]).format(**context)
        if variable not in SECRETS and each["type"] not in _WITHOUT_VALUE:
            rule += f", not {_shown(each['input'])}"
        yield f"{place} {rule}.{_hint(variable, each['input'])}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


def _hint(variable: str, value: object) -> str:
    if variable == "SIGNIN_PORT" and is_link_address(value):
        return (
            " Kubernetes sets it for a Service that is named signin: write `enableServiceLinks: false` into "
            "the pod's spec."
        )
    return ""
