"""What every error that a caller is told is made of."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar


class ProblemError(Exception):
    """An answer other than success, rendered as RFC 9457 `application/problem+json`.

    Subclasses fix `status`, `code` and `title`; an instance adds the `detail` of this occurrence.
    `retry_after_seconds` becomes the `Retry-After` header, `members` extension members of the body;
    `headers` are those of this answer alone.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "The service failed"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        retry_after_seconds: int | None = None,
        members: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.problem_code = code or self.code
        self.retry_after_seconds = retry_after_seconds
        self.members = dict(members or {})
        self.headers = headers
