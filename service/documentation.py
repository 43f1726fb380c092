"""`/docs`: the page that shows the OpenAPI document, which may load what it needs and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re

from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html

PAGE = "/docs"
OPENAPI = "/openapi.json"
_LIBRARY = "https://cdn.jsdelivr.net"
_ICON = "https://fastapi.tiangolo.com"
_INLINE = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def install(app: FastAPI) -> None:
    """Serves the page."""
    html = get_swagger_ui_html(openapi_url=OPENAPI, title=app.title).body
    policy = page_policy(bytes(html).decode())

    async def docs() -> Response:
        return Response(html, media_type="text/html", headers={"Content-Security-Policy": policy})

    app.add_api_route(PAGE, docs, include_in_schema=False)


def page_policy(html: str) -> str:
    """The Content-Security-Policy of the page: its own inline script, by its hash, and Swagger UI's files."""
    hashes = (hashlib.sha256(script.encode()).digest() for script in _INLINE.findall(html))
    inline = " ".join(f"'sha256-{base64.b64encode(each).decode()}'" for each in hashes)
    return (
        f"default-src 'none'; script-src {_LIBRARY} {inline}; style-src {_LIBRARY} 'unsafe-inline'; "
        f"img-src data: {_ICON}; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
