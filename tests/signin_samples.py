"""Reads `samples/signins.yaml`: messages and what each must become."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from transforms.signin_event import SigninEvent

_REPEATED = re.compile(r"<(.)\*([0-9]+)>")


class Sample(NamedTuple):
    name: str
    body: bytes
    outcome: SigninEvent | tuple[str, str | None]
    strict_outcome: SigninEvent | tuple[str, str | None]

    @property
    def error(self) -> str | None:
        """The code of the reason why it is no sign-in where unknown fields are ignored."""
        return None if isinstance(self.outcome, SigninEvent) else self.outcome[0]


def load_samples() -> list[Sample]:
    path = Path(__file__).parent / "samples" / "signins.yaml"
    return [_sample(entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]


def _sample(entry: dict[str, Any]) -> Sample:
    known = {"name", "body", "hex", "event", "error", "field", "strict"}
    assert set(entry) <= known, entry
    body = bytes.fromhex(entry["hex"]) if "hex" in entry else _expand(entry["body"]).encode("utf-8")
    outcome = _outcome(entry)
    return Sample(entry["name"], body, outcome, _outcome(entry["strict"]) if "strict" in entry else outcome)


def _outcome(entry: dict[str, Any]) -> SigninEvent | tuple[str, str | None]:
    if "event" not in entry:
        return entry["error"], entry.get("field")
    event = entry["event"]
    attributes = {_expand(key): _expand(value) for key, value in event.get("attributes", {}).items()}
    event_id = event.get("event_id")
    return SigninEvent(_expand(event["userid"]), event["date"], event_id and _expand(event_id), attributes)


def _expand(text: str) -> str:
    return _REPEATED.sub(lambda match: match[1] * int(match[2]), text)
