"""What is shown of a database's URL: no part of its password, and what tells it from another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.config import masked


@given(before=st.text(max_size=8), after=st.text(max_size=8), place=st.sampled_from(["password", "query"]))
def test_no_part_of_a_password_is_ever_shown(before, after, place):
    password = f"{before}hush{after}"
    url = (
        f"postgresql://signin:{password}@db.example/signin"
        if place == "password"
        else f"postgresql://db.example/signin?password={password}"
    )
    assert "hush" not in masked(url)


def test_what_tells_one_database_from_another_is_shown():
    assert masked("postgresql://u:p@db.example:5432/signin") == "postgresql://***@db.example:5432/signin"
    assert masked("sqlite:////var/lib/signin.db") == "sqlite:////var/lib/signin.db"
    assert masked("") == ""
    assert masked("no url") == "***"
