"""Dead letters in their table: written with their bytes, or refused, counted and logged."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest

from tests.bigquery_servers import refusal
from tests.write_servers import (
    LETTERS,
    POLICY,
    Servers,
    servers_of_each_method,  # noqa: F401 - a fixture
)
from transforms.bigquery_rows import dead_letter_row, is_cut
from transforms.bigquery_write import WriteDeadLetters

LETTER = dead_letter_row(
    stage="decode",
    reason="invalid_json",
    detail="no",
    payload=b"x",
    attributes={"k": "v"},
    message_id="m-1",
    job_id="job-9",
)


def test_dead_letters_are_written_with_their_bytes(servers: Servers):
    assert servers.write_letters([LETTER] * 3) == {"dead_letters_written": 3}
    payload = servers.taken_letters()[0]["payload"]
    assert (base64.b64decode(payload) if isinstance(payload, str) else payload) == b"x"


def test_a_refused_dead_letter_is_written_without_what_it_need_not_have(servers: Servers):
    servers.append.refuse = lambda row: "bad" if "message_id" in row else ""

    def judge(rows: list[dict[str, Any]]) -> Any:
        bad = [index for index, row in enumerate(rows) if "message_id" in row]
        return 200, {"insertErrors": [refusal(index, "invalid") for index in bad]}

    servers.rest.script = [judge] * 9
    assert servers.write_letters([LETTER, LETTER])["dead_letters_written"] == 2
    kept = servers.taken_letters()[0]
    assert (kept["stage"], kept["reason"]) == ("decode", "invalid_json")
    assert "refused as it was" in kept["detail"]


def test_a_dead_letter_that_is_refused_for_good_ends_there_counted_and_logged(
    servers: Servers, caplog: pytest.LogCaptureFixture
):
    servers.append.refuse = lambda row: "bad" if row["reason"] == "invalid_json" else ""

    def judge(rows: list[dict[str, Any]]) -> Any:
        bad = [index for index, row in enumerate(rows) if row["reason"] == "invalid_json"]
        return 200, {"insertErrors": [refusal(index, "invalid") for index in bad]}

    servers.rest.script = [judge] * 9
    counters = servers.write_letters([LETTER, LETTER | {"reason": "empty_body"}])
    assert counters["dead_letters_refused"] == 1
    assert counters["dead_letters_written"] == 1
    assert "message m-1, is refused by signin-local.user_signin.dead_letters" in caplog.text


def test_the_largest_dead_letter_fits_into_a_request(servers: Servers):
    attributes = {f"{n:03}" + "é" * 125: "\u0000" * 1024 for n in range(100)}  # the limits of Pub/Sub
    letter = dead_letter_row(
        stage="decode",
        reason="invalid_json",
        detail="é" * 9999,
        payload=b"\xff" * 10_000_000,
        attributes=attributes,
    )
    assert is_cut(letter["detail"])
    assert servers.write_letters([letter]) == {"dead_letters_written": 1}


def test_dead_letters_are_not_held_beyond_the_bound_however_large_their_attributes(servers: Servers):
    letter = LETTER | {"attributes": [{"key": "k", "value": "v" * 100_000}]}
    step = WriteDeadLetters(
        LETTERS,
        method=servers.method,
        emulator_host=servers.rest.url,
        storage_emulator_host=servers.append.address,
        policy=replace(POLICY, max_bytes=250_000),
    )._write
    step.start_bundle()
    for _ in range(10):
        step.process(letter)
    assert len(servers.taken_letters()) >= 8
