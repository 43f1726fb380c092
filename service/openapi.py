"""What the OpenAPI document says beyond what FastAPI knows of the routes: access, headers, exact schemas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from service import errors
from service.auth import scopes
from service.models import ID_LENGTH
from service.problems import add_answers

_TEXT: dict[str, Any] = {"schema": {"type": "string"}}
# What answers say besides, by the name of its description.
_HEADERS: dict[str, dict[str, Any]] = {
    "RequestId": {"description": "The caller's id of the request, or a new one", **_TEXT},
    "Challenge": {"description": "RFC 6750: `Bearer`, and where a credential was sent its error", **_TEXT},
    "RetryAfter": {"description": "Seconds to wait before the next try", "schema": {"type": "integer"}},
    "RateLimitPolicy": {"description": 'The quota of this key: `"control";q=200;w=10`', **_TEXT},
    "RateLimit": {"description": 'What is left of it: `"control";r=199;t=1`', **_TEXT},
}
_ALWAYS = "Always"  # behind the name where no such answer is without it
# Requests that never come as far as the routes.
_UNROUTED: tuple[type[errors.ProblemError], ...] = (
    errors.MalformedRequestError,
    errors.HostNotAllowedError,
    errors.RequestTimeoutError,
    errors.HeadersTooLargeError,
    errors.TooManyConnectionsError,
    errors.ShuttingDownError,
)
_REFUSED: tuple[type[errors.ProblemError], ...] = (
    errors.AuthenticationRequiredError,
    errors.InvalidCredentialsError,
    errors.InsufficientScopeError,
    errors.OriginNotAllowedError,
    errors.RateLimitedError,
    errors.AuthenticationUnavailableError,
)
# Connections are refused with these, before there is a request that could have an id.
_OF_CONNECTIONS = frozenset({"400", "408", "431", "503"})
# Where things with an id come from: path, status, and what others call the id.
_MAKERS = (
    ("/jobs", "202", "job_id"),
    ("/jobs/adopt", "201", "job_id"),
    ("/dead-letters/replay", "202", "replay_id"),
)
_OF_BODIES = (errors.BodyTimeoutError, errors.BodiesOverloadedError, errors.UnsupportedMediaTypeError)


def install(app: FastAPI) -> None:
    """Makes the document of `app` say all this."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        return app.openapi_schema or completed(describe())

    app.openapi = openapi  # type: ignore[method-assign]


def completed(schema: dict[str, Any]) -> dict[str, Any]:
    """Puts what is missing into `schema` itself."""
    components = schema.setdefault("components", {})
    components["headers"] = _HEADERS | {
        f"{name}{_ALWAYS}": {**header, "required": True} for name, header in _HEADERS.items()
    }
    schemes = components.setdefault("securitySchemes", {})
    schemes["bearer"] = {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key of `signin keys create`, or a token of the OpenID Connect issuer.",
    }
    schemes["key"] = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
    for path, operations in schema.get("paths", {}).items():
        for method, operation in operations.items():
            wanted = scopes.RULES.get((method.upper(), path), scopes.ADMIN)
            _say_access(operation, wanted)
            add_answers(operation, *_UNROUTED, *(_OF_BODIES if "requestBody" in operation else ()))
            _say_headers(operation, is_open=wanted == scopes.OPEN)
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = _never_null(parameter["schema"])
                if parameter["in"] == "path":  # every one is an id; others are told as not found
                    parameter["schema"]["pattern"] = f"^[0-9a-z]{{{ID_LENGTH}}}$"
    _say_links(schema)
    for each in _schemas(schema):
        if "patternProperties" in each:  # a name that fits no pattern is refused
            each.setdefault("additionalProperties", False)
    return schema


def _say_access(operation: dict[str, Any], wanted: str) -> None:
    if wanted == scopes.OPEN:
        operation["security"] = []
        return
    operation["security"] = [{"bearer": []}, {"key": []}]
    operation["description"] = f"{operation.get('description', '')}\n\nNeeds the scope `{wanted}`.".strip()
    add_answers(operation, *_REFUSED)


def _say_headers(operation: dict[str, Any], *, is_open: bool) -> None:
    for status, answer in operation["responses"].items():
        headers = answer.setdefault("headers", {})
        headers["X-Request-ID"] = _header("RequestId", always=status not in _OF_CONNECTIONS)
        if status in ("401", "403"):
            headers["WWW-Authenticate"] = _header("Challenge", always=status == "401")
        elif not is_open:
            headers["RateLimit-Policy"] = _header("RateLimitPolicy")
            headers["RateLimit"] = _header("RateLimit")
        if status in ("409", "429", "503"):
            headers["Retry-After"] = _header("RetryAfter", always=status == "429")


def _header(name: str, *, always: bool = False) -> dict[str, Any]:
    return {"$ref": f"#/components/headers/{name}{_ALWAYS if always else ''}"}


def _say_links(schema: dict[str, Any]) -> None:
    """Says what may be asked of a thing by the id in the answer that told of it."""
    for maker, status, parameter in _MAKERS:
        made = schema["paths"].get(maker, {}).get("post")
        if not made:
            continue
        made["responses"][status]["links"] = {
            operation["operationId"]: {
                "operationId": operation["operationId"],
                "parameters": {parameter: "$response.body#/id"},
            }
            for path, operations in schema["paths"].items()
            if f"{{{parameter}}}" in path
            for operation in operations.values()
        }


def _never_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a parameter, which may be left out, but of which `null` is only a text."""
    choices = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    if len(choices) != 1:
        return schema
    rest = {name: value for name, value in schema.items() if name != "anyOf"}
    return {**rest, **choices[0]}


def _schemas(part: Any) -> Iterator[dict[str, Any]]:
    """Every object in the document, whatever it is."""
    if isinstance(part, dict):
        yield part
        for each in part.values():
            yield from _schemas(each)
    elif isinstance(part, list):
        for each in part:
            yield from _schemas(each)
