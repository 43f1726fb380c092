"""Every answer that is not a success, as RFC 9457 `application/problem+json`, and its documentation."""

from __future__ import annotations

import html
import http
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from service import errors
from service.errors import ProblemError
from service.metrics import Metrics
from transforms.signin_event import REASONS

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
PAGE = "/errors"
CODE_KEY = "signin.problem_code"  # of a scope: the code that its request was answered with
_SCHEMA = {"$ref": "#/components/schemas/Problem"}
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})


class Problem(BaseModel):
    """What went wrong, as RFC 9457 has it; some codes add members of their own."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="Where this kind of problem is described, relative to the service")
    title: str = Field(description="The kind of problem, the same for each occurrence")
    status: int = Field(description="The HTTP status")
    detail: str = Field(description="What is wrong in this request")
    instance: str = Field(description="The path of the request")
    code: str = Field(description="Stable and made for programs")
    retryable: bool = Field(description="Whether the same request may succeed later")
    retry_after: int | None = Field(None, description="Seconds to wait before the next try")
    field: str | None = Field(None, description="The field that is wrong, where it is one")


def rendered(problem: ProblemError, path: str, headers: dict[str, str] | None = None) -> Response:
    """The HTTP response for `problem`, met at `path`."""
    document: dict[str, Any] = {
        "type": f"{PAGE}#{problem.problem_code}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": path,
        "code": problem.problem_code,
        "retryable": problem.retryable,
    }
    headers = {**problem.headers, **(headers or {})}
    if problem.retry_after_seconds is not None:
        document["retry_after"] = problem.retry_after_seconds
        headers["Retry-After"] = str(problem.retry_after_seconds)
    document.update(problem.members)
    return Response(msgspec.json.encode(document), problem.status, headers, MEDIA_TYPE)


def answer_to(scope: Scope, problem: ProblemError, headers: dict[str, str] | None = None) -> Response:
    """The answer to one request, which the audit log can then name the problem of."""
    scope[CODE_KEY] = problem.problem_code
    return rendered(problem, scope["path"], headers)


def of_failure(error: BaseException, method: str, path: str) -> ProblemError:
    """The problem for an error that nobody expected; the log has it, the caller only the way to it."""
    asked = {"requestMethod": method, "requestUrl": path, "status": ProblemError.status}
    log.error("%s %s failed", method, path, exc_info=error, extra={"http_request": asked})
    return ProblemError("The service failed; its log has the cause under this request's id.")


def from_validation(error: RequestValidationError) -> ProblemError:
    """The problem for a request that does not fit its route; values of the request are not repeated."""
    found = error.errors()
    if any(each["type"] == "json_invalid" for each in found):
        return errors.MalformedBodyError("The body is not JSON.", code="invalid_json")
    listed = [{"field": ".".join(map(str, each["loc"])), "detail": each["msg"]} for each in found]
    sentence = "; ".join(f"{each['field']}: {each['detail']}" for each in listed)
    return errors.InvalidRequestError(f"{sentence}.", members={"errors": listed})


def from_http(error: HTTPException) -> ProblemError:
    """The problem for an answer that the framework raised by itself."""
    if isinstance(error.__cause__, ProblemError):
        return error.__cause__  # FastAPI wraps what is raised while it reads a body
    known: dict[int, tuple[type[ProblemError], str]] = {
        400: (errors.MalformedBodyError, "The body cannot be read."),
        404: (errors.RouteNotFoundError, "There is nothing at this address."),
        405: (errors.MethodNotAllowedError, "This address takes only the methods that Allow names."),
    }
    if error.status_code in known:
        problem, detail = known[error.status_code]
        return problem(detail)
    return _other(error.status_code)


def allowed_methods(app: FastAPI, request: Request) -> list[str]:
    """What may be done at the address of `request`; the framework knows only its first route's method.

    Where the very address is a route, it is nothing else: `/jobs/adopt` is no job.
    """
    methods = {method for path, method in served(app.routes) if path == request.url.path}
    if not methods:
        methods = {method for method in _METHODS if _takes(app, {**request.scope, "method": method})}
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)  # see `Edge`


def _takes(app: FastAPI, scope: Scope) -> bool:
    return any(route.matches(scope)[0] is Match.FULL for route in app.routes)


def served(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, str]]:
    """Each path, as it was declared, and method that is served."""
    for route in routes:
        if isinstance(route, Route):
            yield from ((route.path, method) for method in route.methods or ())
        else:  # FastAPI keeps an included router as one route
            inner = getattr(route, "original_router", None)
            yield from served(inner.routes if inner else ())


def _other(status: int) -> ProblemError:
    phrase = http.HTTPStatus(status).phrase

    class FrameworkError(ProblemError):
        """Any other status, under its standard name."""

    FrameworkError.status = status
    FrameworkError.code = phrase.lower().replace(" ", "_")
    FrameworkError.title = phrase
    return FrameworkError(f"{phrase}.")


def install(app: FastAPI, metrics: Metrics | None = None) -> None:
    """Makes `app` render and count every error, and describe them all in its OpenAPI document."""
    counted = metrics or Metrics()

    def answer(request: Request, problem: ProblemError, headers: dict[str, str] | None = None) -> Response:
        counted.problem_answered(request.scope, problem.problem_code)
        return answer_to(request.scope, problem, headers)

    async def on_problem(request: Request, error: Any) -> Response:
        return answer(request, error)

    async def on_validation(request: Request, error: Any) -> Response:
        return answer(request, from_validation(error))

    async def on_http(request: Request, error: Any) -> Response:
        headers = {"Allow": ", ".join(allowed_methods(app, request))} if error.status_code == 405 else None
        return answer(request, from_http(error), headers)

    async def on_failure(request: Request, error: Exception) -> Response:
        return answer(request, of_failure(error, request.method, request.url.path))

    async def on_disconnect(request: Request, error: Any) -> Response:  # noqa: ARG001
        log.debug("the caller went away")
        return Response(status_code=499)

    app.add_exception_handler(ProblemError, on_problem)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(ClientDisconnect, on_disconnect)
    app.add_exception_handler(Exception, on_failure)
    app.add_api_route(PAGE, page, response_class=HTMLResponse, include_in_schema=False)
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        return app.openapi_schema or documented(describe())

    app.openapi = openapi  # type: ignore[method-assign]


async def page() -> str:
    """The page that the `type` of every problem leads to."""
    found = dict(REASONS) | {each.code: each.title for each in _all_problems()}
    entries = "".join(
        f"<dt id={html.escape(code)}><code>{html.escape(code)}</code></dt><dd>{html.escape(text)}</dd>"
        for code, text in sorted(found.items())
    )
    return f"<!doctype html><html lang=en><meta charset=utf-8><title>Errors</title><dl>{entries}</dl></html>"


def _all_problems() -> list[type[ProblemError]]:
    return [
        each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, ProblemError)
    ]


def responses(*problems: type[ProblemError]) -> dict[int | str, dict[str, Any]]:
    """The `responses` argument of a route that can answer with `problems`."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for problem in problems:
        entry = by_status.setdefault(problem.status, {"description": "", "content": {MEDIA_TYPE: {}}})
        sentence = f"`{problem.code}`: {problem.title}."
        entry["description"] = f"{entry['description']} {sentence}".strip()
        entry["content"][MEDIA_TYPE]["schema"] = _SCHEMA
    return by_status


def documented(schema: dict[str, Any]) -> dict[str, Any]:
    """Puts our problem document in the place of FastAPI's own error bodies, in `schema` itself."""
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    for framework_schema in ("HTTPValidationError", "ValidationError"):
        components.pop(framework_schema, None)
    components["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    for operation in _operations(schema):
        always: list[type[ProblemError]] = [ProblemError]
        if "requestBody" in operation:
            always += [errors.MalformedBodyError, errors.BodyTooLargeError]
        add_answers(operation, *always)
        for status, answer in operation["responses"].items():
            if status >= "400" and MEDIA_TYPE not in answer.get("content", {}):
                answer["content"] = {MEDIA_TYPE: {"schema": _SCHEMA}}
                if answer["description"] == "Validation Error":
                    answer["description"] = responses(errors.InvalidRequestError)[422]["description"]
    return schema


def add_answers(operation: dict[str, Any], *problems: type[ProblemError]) -> None:
    """Adds what `operation` may also be answered with, to what it says of the same status already."""
    answers: dict[str, Any] = operation["responses"]
    for status, answer in responses(*problems).items():
        known = answers.setdefault(str(status), answer)
        if known is not answer:
            told = known["description"]
            sentences = [f"`{each.code}`: {each.title}." for each in problems if each.status == status]
            known["description"] = " ".join([told, *(each for each in sentences if each not in told)]).strip()
    operation["responses"] = dict(sorted(answers.items()))


def _operations(schema: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for path in schema.get("paths", {}).values():
        yield from (operation for operation in path.values() if "responses" in operation)
