"""Every answer that is not a success is one kind of document, and the documentation says so."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re

import pytest
from fastapi import Request

from service import errors
from service.app import create_app
from service.bodies import Bodies
from service.config import Settings
from service.edge import Edge
from service.problems import MEDIA_TYPE
from tests.serving import ARTICLE, JSON, assert_problem, running, serving, settings_for
from transforms.signin_event import REASONS


@pytest.fixture(scope="module")
def openapi():
    return create_app(Settings(_env_file=None)).openapi()


async def test_an_unknown_address_is_a_problem(tmp_path):
    async with serving(settings_for(tmp_path)) as client:
        assert_problem(await client.get("/nothing"), 404, "not_found")


@pytest.mark.parametrize("path", ["/jobs", "/jobs/adopt", "/dead-letters/replay"])
async def test_a_body_that_is_packed_for_a_route_that_does_not_unpack_is_refused_as_such(path, tmp_path):
    async with serving(settings_for(tmp_path)) as client:
        packed = JSON | {"Content-Encoding": "gzip"}
        response = await client.post(path, content=gzip.compress(b"{}"), headers=packed)
        assert "Content-Encoding" in assert_problem(response, 415, "unsupported_media_type")["detail"]
        plain = JSON | {"Content-Encoding": "identity"}
        assert (await client.post(path, content=b"[]", headers=plain)).status_code == 422


async def test_a_wrong_method_is_a_problem_that_names_the_right_ones(tmp_path):
    async with serving(settings_for(tmp_path)) as client:
        response = await client.get("/events/signin")
        assert_problem(response, 405, "method_not_allowed")
        assert response.headers["allow"] == "POST"
        assert (await client.delete("/jobs")).headers["allow"] == "GET, HEAD, POST"


async def test_a_query_that_does_not_fit_is_a_problem_that_names_the_field(tmp_path):
    async with serving(settings_for(tmp_path)) as client:
        problem = assert_problem(await client.get("/jobs?page_size=secret"), 422, "invalid_request")
        assert [error["field"] for error in problem["errors"]] == ["query.page_size"]
        assert "secret" not in str(problem)


async def test_a_broken_json_body_of_any_route_is_a_problem(tmp_path):
    async with serving(settings_for(tmp_path)) as client:
        assert_problem(await client.post("/jobs", content=b"{", headers=JSON), 400, "invalid_json")


async def test_a_body_of_unknown_length_is_bounded_on_every_route(tmp_path):
    async def endless():
        while True:
            yield b" " * 10_000

    async with serving(settings_for(tmp_path)) as client:
        assert_problem(await client.post("/jobs", content=endless(), headers=JSON), 413, "body_too_large")


async def test_a_body_that_does_not_arrive_is_given_up_on_every_route(tmp_path):

    async def stalled():
        yield b"{"
        await asyncio.sleep(60)

    async with serving(settings_for(tmp_path, body_deadline_seconds=0.1)) as client:
        assert_problem(await client.post("/jobs", content=stalled(), headers=JSON), 408, "body_timeout")


async def test_an_address_with_a_slash_too_many_is_not_redirected_to_the_host_that_the_caller_names(tmp_path):
    async with serving(settings_for(tmp_path, allowed_hosts="elsewhere")) as client:
        assert_problem(await client.get("/jobs/", headers={"Host": "elsewhere"}), 404, "not_found")


async def test_an_unexpected_error_tells_the_log_everything_and_the_caller_nothing(tmp_path, caplog):
    app = create_app(settings_for(tmp_path))

    @app.get("/broken")
    async def broken(request: Request) -> None:
        raise RuntimeError("a secret")

    async with running(app) as client:
        with caplog.at_level(logging.ERROR, "service.problems"):
            response = await client.get("/broken", headers={"X-Request-ID": "mine-1"})
    problem = assert_problem(response, 500, "internal_error")
    assert "secret" not in str(problem)
    assert response.headers["x-request-id"] == "mine-1"
    [record] = [record for record in caplog.records if record.name == "service.problems"]
    assert "a secret" in str(record.exc_info[1])


@pytest.mark.parametrize(
    ("sent", "kept"), [("abc-1.2:3", True), ("a b", False), ("x" * 129, False), ("", False)]
)
async def test_every_answer_carries_a_request_id(tmp_path, sent, kept):
    async with serving(settings_for(tmp_path)) as client:
        for path in ("/healthz", "/nothing"):
            found = (await client.get(path, headers={"X-Request-ID": sent})).headers["x-request-id"]
            assert found == sent if kept else re.fullmatch("[0-9a-f]{16}", found)


def test_every_error_class_has_a_code_of_its_own():
    classes = [
        each
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, errors.ProblemError)
    ]
    assert len({each.code for each in classes}) == len(classes)
    assert all(re.fullmatch("[a-z_]+", each.code) for each in classes)


def test_every_answer_of_every_route_is_documented_with_its_body(openapi):
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            answers = operation["responses"]
            assert "500" in answers, (method, path)
            for status, answer in answers.items():
                content = answer.get("content", {})
                if status >= "400":
                    assert content == {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
                elif status not in ("204", "304"):
                    media_type = "text/plain" if path == "/metrics" else "application/json"
                    assert content[media_type]["schema"], (method, path, status)


def test_the_documentation_knows_no_error_body_but_ours(openapi):
    assert "HTTPValidationError" not in str(openapi)
    assert set(openapi["components"]["schemas"]["Problem"]["required"]) >= {"type", "title", "status", "code"}


def test_the_route_of_events_is_documented_with_an_example_and_every_reason(openapi):
    operation = openapi["paths"]["/events/signin"]["post"]
    assert set(operation["responses"]) == {
        *("202", "400", "401", "403", "408", "413", "415", "421", "422", "429", "431", "500", "502", "503")
    }
    body = operation["requestBody"]["content"]["application/json"]
    assert body["example"] == {"userid": "93234234", "date": "2017-10-17T20:57:17.338320"}
    told = operation["responses"]["400"]["description"] + operation["responses"]["422"]["description"]
    assert all(f"`{code}`" in told for code in REASONS)


async def test_the_documentation_and_the_page_of_errors_are_served(tmp_path):
    async with serving(settings_for(tmp_path)) as client:
        assert "swagger" in (await client.get("/docs")).text
        assert (await client.get("/openapi.json")).json()["info"]["title"] == "Sign-in pipeline"
        page = (await client.get("/errors")).text
        assert "id=publish_unavailable" in page
        assert "id=date_invalid" in page


async def test_the_service_that_shuts_down_says_so(tmp_path):
    app = create_app(settings_for(tmp_path))
    async with running(app) as client:
        await app.state.publisher.close()
        response = await client.post("/events/signin", content=ARTICLE, headers=JSON)
        assert_problem(response, 503, "shutting_down")


async def test_a_request_that_is_broken_off_at_the_end_of_the_service_is_answered_before(tmp_path):
    started, sent = asyncio.Event(), []

    async def hanging(scope, receive, send):
        started.set()
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/jobs", "headers": []}
    task = asyncio.create_task(Edge(hanging, Bodies(settings_for(tmp_path)))(scope, None, send))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [message.get("status") for message in sent] == [503, None]
    assert json.loads(sent[1]["body"])["code"] == "shutting_down"
