"""Google's REST interfaces, for what this service asks so seldom that a client library would be too much."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from service.clients import Clients
from service.errors import ConfigError

if TYPE_CHECKING:
    import httpx

MOST_BYTES = 4_000_000
REFRESH_SECONDS = 5.0


class RestError(Exception):
    """No answer, or another than 200: its HTTP status, 0 where there was none, and its body."""

    def __init__(self, detail: str, status: int = 0, body: bytes = b"") -> None:
        super().__init__(detail)
        self.status = status
        self.body = body


class GoogleRest:
    """GET with a deadline; with credentials where the address is https, without where it is an emulator's."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._making = asyncio.Lock()
        self._http: httpx.AsyncClient | None = None

    async def get(self, url: str, parameters: Mapping[str, str], *, deadline_seconds: float) -> bytes:
        """The body of the answer, of at most MOST_BYTES. Raises RestError."""
        import httpx

        try:
            async with asyncio.timeout(deadline_seconds):
                async with self._making:  # the first calls may come together
                    if self._http is None:
                        self._http = await asyncio.to_thread(httpx.AsyncClient, timeout=deadline_seconds)
                headers = await self._authorization() if url.startswith("https://") else {}
                async with self._http.stream("GET", url, params=dict(parameters), headers=headers) as answer:
                    body = b""
                    async for piece in answer.aiter_bytes():
                        body += piece
                        if len(body) > MOST_BYTES:
                            raise RestError(f"{url} answers with more than {MOST_BYTES} bytes")
        except TimeoutError as error:
            raise RestError(f"{url} did not answer within {deadline_seconds:g} s") from error
        except (httpx.HTTPError, ConfigError) as error:
            raise RestError(f"{url} cannot be asked: {type(error).__name__}") from error
        if answer.status_code != 200:
            raise RestError(f"{url} answers {answer.status_code}", answer.status_code, body)
        return body

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()

    async def _authorization(self) -> dict[str, str]:
        credentials: Any = await self._clients.credentials()
        if not credentials.valid:
            await asyncio.to_thread(_refresh, credentials)
        return {"Authorization": f"Bearer {credentials.token}"}


def _refresh(credentials: Any) -> None:
    from google.auth.exceptions import GoogleAuthError

    try:
        refresh(credentials)
    except GoogleAuthError as error:
        raise RestError(f"the credentials do not work: {error}") from error


def refresh(credentials: Any) -> None:
    """Gets a new token; blocks. Raises GoogleAuthError."""
    from google.auth.transport.requests import Request

    # By itself google.auth waits for two minutes, and the end of the process would wait with it.
    credentials.refresh(functools.partial(Request(), timeout=REFRESH_SECONDS))
