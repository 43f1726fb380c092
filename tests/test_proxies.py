"""Where a request came from, behind proxies of every kind, and what hangs on it."""

from __future__ import annotations

import logging
import secrets

import httpx
import pytest

from service.app import create_app
from service.auth import questions
from service.config import Settings, sources
from service.errors import ConfigError
from service.proxies import Proxies
from tests.doors import bearer, make_key
from tests.serving import listening, settings_for

PROXY, CALLER, INVENTED = "127.0.0.2", "198.51.100.7", "203.0.113.66"
DEFAULT = Settings.model_fields["trusted_proxies"].default


async def believed(trusted, peer, headers):
    """The scope of a request with which it reaches the application."""
    seen = []

    async def app(scope, receive, send):
        seen.append(scope)

    scope = {"type": "http", "client": (peer, 1), "scheme": "http", "headers": headers}
    await Proxies(app, Settings(_env_file=None, trusted_proxies=trusted))(scope, None, None)
    return seen[0]


@pytest.mark.parametrize(
    ("trusted", "peer", "told", "caller"),
    [
        (DEFAULT, "127.0.0.1", [CALLER], CALLER),
        (DEFAULT, "::1", [CALLER], CALLER),
        (DEFAULT, "10.0.0.9", [CALLER], "10.0.0.9"),
        ("", "127.0.0.1", [CALLER], "127.0.0.1"),
        ("10.0.0.0/8", "10.0.0.9", [f"{INVENTED}, {CALLER}"], CALLER),
        ("10.0.0.0/8", "10.0.0.9", [INVENTED, f"{CALLER},10.0.0.4"], CALLER),
        ("10.0.0.0/8", "10.0.0.9", ["10.0.0.3, 10.0.0.4"], "10.0.0.3"),
        ("fd00::/8 , 10.0.0.9", "fd00::9", ["[2001:db8::7]:5000"], "2001:db8::7"),
        ("10.0.0.9", "10.0.0.9", [f"{CALLER}:5000"], CALLER),
        ("10.0.0.9", "10.0.0.9", [], "10.0.0.9"),
        ("10.0.0.9", "10.0.0.9", ["unknown"], "10.0.0.9"),
        ("10.0.0.0/8", "10.0.0.9", [f"{INVENTED}, unknown, 10.0.0.4"], "10.0.0.4"),
        ("*", "192.0.2.1", [f"{INVENTED}, {CALLER}"], CALLER),
        ("*, 10.0.0.9", "192.0.2.1", [f"{INVENTED}, {CALLER}, 10.0.0.9"], CALLER),
    ],
)
async def test_the_caller_is_the_last_address_that_no_trusted_proxy_has(trusted, peer, told, caller):
    headers = [(b"x-forwarded-for", each.encode()) for each in told]
    assert (await believed(trusted, peer, headers))["client"][0] == caller


@pytest.mark.parametrize(
    ("peer", "told", "scheme"),
    [("10.0.0.9", b"https", "https"), ("10.0.0.9", b"gopher", "http"), ("10.0.0.8", b"https", "http")],
)
async def test_the_scheme_is_what_a_trusted_proxy_says(peer, told, scheme):
    assert (await believed("10.0.0.9", peer, [(b"x-forwarded-proto", told)]))["scheme"] == scheme


@pytest.mark.parametrize("name", ["localhost", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.1 10.0.0.2"])
def test_a_proxy_that_is_no_address_is_told_at_the_start(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIGNIN_TRUSTED_PROXIES", f"127.0.0.1, {name}")
    with pytest.raises(ConfigError) as told:
        sources.load()
    assert str(told.value) == (
        "SIGNIN_TRUSTED_PROXIES must be addresses and networks by commas, as 10.0.0.7 and 10.0.0.0/8, "
        f"or *, not {name!r}."
    )


@pytest.mark.parametrize(
    ("trusted", "address"), [(DEFAULT, PROXY), (PROXY, CALLER), ("*", CALLER), ("10.0.0.0/8", PROXY)]
)
async def test_the_audit_log_has_the_caller_s_address_where_the_proxy_is_trusted(
    tmp_path, caplog, monkeypatch, trusted, address
):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # uvicorn's, which the setting stands for
    caplog.set_level(logging.INFO, "service.audit")
    given = settings_for(tmp_path, require_authentication=True, trusted_proxies=trusted)
    async with listening(given) as port, through_proxy(port) as client:
        await client.get("/jobs", headers={"X-Forwarded-For": f"{INVENTED}, {CALLER}"})
    [refused] = [record.fields["audit"] for record in caplog.records if record.name == "service.audit"]
    assert refused["address"] == address


async def test_a_stranger_behind_a_trusted_proxy_uses_up_no_other_caller_s_part(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "LOOK_UPS_PER_ADDRESS", 1.0)
    given = settings_for(tmp_path, require_authentication=True, trusted_proxies=PROXY)
    app = create_app(given)
    async with listening(given, app) as port, through_proxy(port) as client:
        key = await make_key(app.state.database, "jobs:read")

        async def status(credential, address):
            headers = bearer(credential) | {"X-Forwarded-For": address}
            return (await client.get("/jobs", headers=headers)).status_code

        invented = [f"signin_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}" for _ in range(9)]
        assert 429 in [await status(each, INVENTED) for each in invented]
        assert await status(key.text, CALLER) == 200


def through_proxy(port):
    """A client whose connections come from PROXY."""
    transport = httpx.AsyncHTTPTransport(local_address=PROXY)
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", transport=transport)
