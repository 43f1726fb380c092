"""`/docs`: the page that shows the OpenAPI document, which may load what it needs and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html

from service import errors
from service.auth import scopes
from service.problems import responses

PAGE = "/docs"
OPENAPI = "/openapi.json"
_LIBRARY = "https://cdn.jsdelivr.net"
_ICON = "https://fastapi.tiangolo.com"
_INLINE = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def install(app: FastAPI) -> None:
    """Serves the page, and makes the OpenAPI document say what each route wants."""
    html = get_swagger_ui_html(openapi_url=OPENAPI, title=app.title).body
    policy = page_policy(bytes(html).decode())

    async def docs() -> Response:
        return Response(html, media_type="text/html", headers={"Content-Security-Policy": policy})

    app.add_api_route(PAGE, docs, include_in_schema=False)


def describe_access(app: FastAPI) -> None:
    """Adds keys, scopes and what they are refused with to the OpenAPI document of `app`."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        return app.openapi_schema or secured(describe())

    app.openapi = openapi  # type: ignore[method-assign]


def page_policy(html: str) -> str:
    """The Content-Security-Policy of the page: its own inline script, by its hash, and Swagger UI's files."""
    hashes = (hashlib.sha256(script.encode()).digest() for script in _INLINE.findall(html))
    inline = " ".join(f"'sha256-{base64.b64encode(each).decode()}'" for each in hashes)
    return (
        f"default-src 'none'; script-src {_LIBRARY} {inline}; style-src {_LIBRARY} 'unsafe-inline'; "
        f"img-src data: {_ICON}; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def secured(schema: dict[str, Any]) -> dict[str, Any]:
    """Puts who may call what into `schema` itself."""
    schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["bearer"] = {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key of `signin keys create`, or a token of the OpenID Connect issuer.",
    }
    schemes["key"] = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
    for path, operations in schema.get("paths", {}).items():
        for method, operation in operations.items():
            wanted = scopes.RULES.get((method.upper(), path), scopes.ADMIN)
            _secure(operation, wanted)
    return schema


def _secure(operation: dict[str, Any], wanted: str) -> None:
    told: list[type[errors.ProblemError]] = [errors.HostNotAllowedError]
    if wanted == scopes.OPEN:
        operation["security"] = []
    else:
        operation["security"] = [{"bearer": []}, {"key": []}]
        operation["description"] = (
            f"{operation.get('description', '')}\n\nNeeds the scope `{wanted}`.".strip()
        )
        told += [
            errors.AuthenticationRequiredError,
            errors.InvalidCredentialsError,
            errors.InsufficientScopeError,
            errors.OriginNotAllowedError,
            errors.RateLimitedError,
            errors.AuthenticationUnavailableError,
        ]
    answers = operation["responses"]
    for status, answer in responses(*told).items():
        known = answers.setdefault(str(status), answer)
        if known is not answer:  # another problem has this status
            known["description"] = f"{known['description']} {answer['description']}".strip()
    operation["responses"] = dict(sorted(answers.items()))
