"""`/docs`: Swagger UI with our OpenAPI document, a page that loads nothing from elsewhere."""

from __future__ import annotations

import asyncio
import html
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI, Response

from service.errors import RouteNotFoundError

PAGE = "/docs"
OPENAPI = "/openapi.json"
FILE = PAGE + "/{name}"
_KEPT = {"Cache-Control": "public, max-age=3600"}
_MEDIA_TYPES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
_PROGRAM = "start.js"
_START = f"""\
SwaggerUIBundle({{
  url: "{OPENAPI}",
  dom_id: "#interface",
  deepLinking: true,
  layout: "BaseLayout",
  validatorUrl: null,
}});
"""
# `data:` are the icons in Swagger UI's own style sheet.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def install(app: FastAPI) -> None:
    """Serves the page and the files that it is made of."""
    text = _page(app.title)

    async def page() -> Response:
        return Response(text, media_type="text/html", headers={"Content-Security-Policy": _POLICY})

    app.add_api_route(PAGE, page, include_in_schema=False)
    app.add_api_route(FILE, file, include_in_schema=False)


async def file(name: str) -> Response:
    """One file of the page. Raises RouteNotFoundError."""
    if name == _PROGRAM:
        return Response(_START, media_type="text/javascript", headers=_KEPT)
    if name not in _MEDIA_TYPES:
        raise RouteNotFoundError("There is nothing at this address.")
    return Response(await asyncio.to_thread(_read, name), media_type=_MEDIA_TYPES[name], headers=_KEPT)


@cache
def _read(name: str) -> bytes:
    """A file of the package `fastapi-offline`, which is not imported."""
    package = find_spec("fastapi_offline")
    assert package
    assert package.origin
    return (Path(package.origin).with_name("static") / name).read_bytes()


def _page(title: str) -> str:
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title>"
        f"<link rel=stylesheet href={PAGE}/swagger-ui.css><link rel=icon href=data:,>"
        f"<div id=interface></div><script src={PAGE}/swagger-ui-bundle.js></script>"
        f"<script src={PAGE}/{_PROGRAM}></script></html>"
    )
