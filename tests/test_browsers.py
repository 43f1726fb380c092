"""What a page in a browser can make of the service: nothing that it was not given."""

from __future__ import annotations

import asyncio
import re
import sys

import httpx
import pytest

from service.auth.hosts import hostname
from tests.dockerfile import all_instructions, health_command, read_stages
from tests.doors import bearer, make_key, shut
from tests.serving import ARTICLE, JSON, assert_problem, pubsub_with_topic, serving, settings_for
from tests.test_connections import listening


@pytest.fixture
async def client(tmp_path, database_url):
    async with serving(settings_for(tmp_path, database_url=database_url)) as client:
        yield client


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil"]
)
async def test_a_name_that_was_made_to_point_at_this_machine_is_refused(client, host):
    for path in ("/jobs", "/metrics", "/version", "/nowhere", "/docs"):
        assert_problem(await client.get(path, headers={"Host": host}), 421, "host_not_allowed")
    sent = await client.post("/events/signin", content=ARTICLE, headers=JSON | {"Host": host})
    assert_problem(sent, 421, "host_not_allowed")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "127.1.2.3", "[::1]:8080", "[::1]"]
)
async def test_this_machine_s_own_names_are_taken(client, host):
    assert (await client.get("/version", headers={"Host": host})).status_code == 200


async def test_more_names_may_be_named_and_elsewhere_all_are_taken_unless_some_are(tmp_path, database_url):
    async def status(named, **values):
        async with serving(settings_for(tmp_path, database_url=database_url, **values)) as client:
            return (await client.get("/version", headers={"Host": named})).status_code

    assert await status("signin.internal:80", allowed_hosts="a.example, Signin.Internal") == 200
    assert await status("b.example", allowed_hosts="a.example") == 421
    assert await status("b.example", allowed_hosts="*") == 200
    assert await status("10.2.3.4:8080", host="0.0.0.0") == 200
    assert await status("b.example", host="0.0.0.0", allowed_hosts="a.example") == 421
    assert await status("localhost", host="0.0.0.0", allowed_hosts="a.example") == 421


async def test_probes_call_the_service_by_its_address_whatever_names_it_has(tmp_path, database_url):
    values = {"host": "0.0.0.0", "allowed_hosts": "signin.example", "database_url": database_url}
    async with pubsub_with_topic(tmp_path, **values) as (_, settings, _reader), listening(settings) as port:
        _, *arguments = health_command(all_instructions(read_stages(), "service"))
        asking = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, env={"SIGNIN_PORT": str(port)}, stderr=asyncio.subprocess.PIPE
        )
        _, said = await asking.communicate()
        assert asking.returncode == 0, said.decode()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for path in ("/healthz", "/startupz", "/readyz"):
                assert (await client.get(path)).status_code in (200, 503), path
                assert (await client.head(path)).status_code in (200, 503), path


@pytest.mark.parametrize(
    ("host", "name"),
    [("A.b:80", "a.b"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("a", "a"), ("", ""), (":80", ""), ("[", "")],
)
def test_the_name_in_a_host_header(host, name):
    assert hostname(host) == name


async def test_a_page_of_another_site_cannot_act_where_no_key_is_needed(client):
    for origin in ("https://evil.example", "null", "http://localhost:3000"):
        posted = await client.post("/jobs/0123456789abcdefghjk/drain", headers={"Origin": origin})
        assert_problem(posted, 403, "origin_not_allowed")
        sent = await client.post("/events/signin", content=ARTICLE, headers=JSON | {"Origin": origin})
        assert_problem(sent, 403, "origin_not_allowed")
    own = await client.get("/jobs", headers={"Origin": "http://localhost"})
    assert own.status_code == 200


async def test_no_answer_lets_another_site_read_it(tmp_path, database_url):
    async with shut(tmp_path, database_url) as (app, client):
        key = await make_key(app.state.database, "admin")
        headers = bearer(key.text) | {"Origin": "https://other.example"}
        for method, path in (("GET", "/jobs"), ("OPTIONS", "/jobs"), ("GET", "/healthz")):
            answer = await client.request(method, path, headers=headers)
            assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_answers_are_not_kept_not_guessed_at_and_not_framed(client):
    for path in ("/jobs", "/healthz", "/nowhere", "/openapi.json", "/errors"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["cache-control"] == "no-store", path
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'", path
        assert headers["referrer-policy"] == "no-referrer", path
        assert headers["cross-origin-resource-policy"] == "same-origin", path


async def test_the_short_way_of_sign_ins_carries_them_too(tmp_path):
    async with (
        pubsub_with_topic(tmp_path) as (_, settings, _reader),
        listening(settings) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        sent = await client.post("/events/signin", content=ARTICLE, headers=JSON)
        assert sent.status_code == 202
        assert sent.headers["x-content-type-options"] == "nosniff"
        assert sent.headers["cache-control"] == "no-store"
        refused = await client.post(
            "/events/signin", content=ARTICLE, headers=JSON | {"Host": "evil.example"}
        )
        assert_problem(refused, 421, "host_not_allowed")


async def test_the_page_of_the_interface_loads_the_service_s_own_files_and_nothing_else(client):
    page = await client.get("/docs")
    policy = dict(each.split(" ", 1) for each in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy["script-src"], policy["style-src"], policy["connect-src"]} == {"'self'"}
    assert not re.search(
        r"<script>|<style| style=| on[a-z]+=", page.text
    )  # the policy lets nothing inline run
    files = re.findall(r"(?:src|href)=([^ >]+)", page.text)
    assert "data:," in files
    for path in set(files) - {"data:,"}:
        assert path.startswith("/docs/")
        loaded = await client.get(path)
        assert (loaded.status_code, len(loaded.content) > 100) == (200, True)
        assert loaded.headers["content-type"].startswith(
            "text/css" if path.endswith("css") else "text/javascript"
        )
        assert loaded.headers["x-content-type-options"] == "nosniff"
    assert '"/openapi.json"' in (await client.get("/docs/start.js")).text


@pytest.mark.parametrize("name", ["redoc.standalone.js", "..%2f__init__.py", "%2e%2e", "x"])
async def test_of_the_package_with_the_page_s_files_nothing_else_is_served(client, name):
    assert_problem(await client.get(f"/docs/{name}"), 404, "not_found")


async def test_the_pages_of_the_interface_can_be_closed(tmp_path, database_url):
    async with serving(settings_for(tmp_path, database_url=database_url, docs=False)) as client:
        for path in ("/docs", "/docs/swagger-ui.css", "/openapi.json", "/redoc"):
            assert_problem(await client.get(path), 404, "not_found")


async def test_an_answer_with_an_etag_may_be_asked_for_again_by_its_caller(tmp_path, world):
    job = await world.launch()
    settings = settings_for(tmp_path, database_url=world.settings.database_url)
    async with serving(settings) as client:
        answer = await client.get(f"/jobs/{job['id']}")
    assert answer.headers["etag"]
    assert answer.headers["cache-control"] == "private, no-cache"
