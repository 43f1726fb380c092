"""The names in the query of a request to /jobs: one that is mistyped must not launch what it was to check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from fastapi import Request

from service.errors import InvalidRequestError

_LONGEST_NAME = 64


def only_known(request: Request) -> None:
    """Raises InvalidRequestError for names that the route does not have, and for those given twice."""
    takes = {
        parameter.alias: _is_list(parameter.field_info.annotation)
        for parameter in _parameters(request.scope["route"].dependant)
    }
    for name, count in Counter(name for name, _ in request.query_params.multi_items()).items():
        told = name[:_LONGEST_NAME]
        if name not in takes:
            known = ", ".join(sorted(takes)) or "none"
            raise _refusal(told, f"There is no such query parameter here; there are: {known}.")
        if count > 1 and not takes[name]:
            raise _refusal(told, "The query parameter is given more than once.")


def _refusal(name: str, detail: str) -> InvalidRequestError:
    found = {"field": f"query.{name}", "detail": detail}
    return InvalidRequestError(f"query.{name}: {detail}", members={"errors": [found]})


def _parameters(dependant: Any) -> Iterator[Any]:
    yield from dependant.query_params
    for each in dependant.dependencies:
        yield from _parameters(each)


def _is_list(annotation: Any) -> bool:
    return any(get_origin(each) is list for each in (annotation, *get_args(annotation)))
