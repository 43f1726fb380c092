"""Settings that would be ignored or lock everybody out keep the service from starting."""

from __future__ import annotations

import pytest

from service.config import Settings
from service.errors import ConfigError
from service.start_rules import require_startable
from tests.serving import settings_for


def told(tmp_path, **values):
    with pytest.raises(ConfigError) as caught:
        require_startable(settings_for(tmp_path, **values))
    return str(caught.value).splitlines()


def test_doors_that_are_to_be_open_and_closed_at_once_are_told(tmp_path):
    assert told(tmp_path, require_authentication=True, allow_unauthenticated_access=True) == [
        "SIGNIN_REQUIRE_AUTHENTICATION and SIGNIN_ALLOW_UNAUTHENTICATED_ACCESS contradict each other: "
        "set one of them to false."
    ]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"oidc_audience": "https://signin.example"}, "SIGNIN_OIDC_AUDIENCE"),
        (
            {"oidc_audience": "https://signin.example", "oidc_scopes": '{"sub=a": ["admin"]}'},
            "SIGNIN_OIDC_AUDIENCE and SIGNIN_OIDC_SCOPES",
        ),
    ],
)
def test_what_tokens_need_is_of_no_use_without_their_issuer(tmp_path, values, names):
    assert told(tmp_path, **values) == [
        f"Without SIGNIN_OIDC_ISSUER no tokens are taken: set it, or remove {names}."
    ]


def test_the_budget_of_bodies_has_room_for_one_of_them_packed_and_unpacked(tmp_path):
    (sentence,) = told(tmp_path, max_bodies_bytes=9_999_999)
    assert "make it 10000000 or more" in sentence
    require_startable(settings_for(tmp_path, max_bodies_bytes=10_000_000))
    require_startable(settings_for(tmp_path, max_bodies_bytes=300_000, max_batch_body_bytes=150_000))


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    values = {"require_authentication": True, "allow_unauthenticated_access": True}
    assert len(told(tmp_path, **values, oidc_scopes="{}", max_bodies_bytes=1024, host="0.0.0.0")) == 3


@pytest.mark.parametrize(
    "name", ["signin.example.com:8080", "https://signin.example.com", "*.example", "[::1]"]
)
def test_a_host_is_allowed_by_its_bare_name(name):
    with pytest.raises(ValueError, match="without scheme and port"):
        Settings(_env_file=None, allowed_hosts=f"a.example, {name}")


@pytest.mark.parametrize("names", ["", "*", "signin", "my_service, Signin.Example-1.com,10.0.0.1, ::1"])
def test_names_addresses_and_the_star_are_hosts(names):
    assert Settings(_env_file=None, allowed_hosts=names).allowed_hosts == names
