"""The alert rules as files, and which of them fire over samples: `for` and recorded rules included."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml

from tests.promql import Series, bare, evaluate

FOLDER = Path(__file__).parent.parent / "deploy" / "monitoring"
RULES = yaml.safe_load((FOLDER / "signin-alerts.yaml").read_text())
ALL = [rule for group in RULES["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in ALL if "alert" in rule}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> float:
    return float(sum(int(count) * _UNITS[unit] for count, unit in re.findall(r"(\d+)([smhd])", str(text))))


def firing(series: Series, moments: Iterable[float]) -> list[set[str]]:
    """The names of the alerts that fire at each of the moments, which are the evaluations."""
    since: dict[tuple[int, tuple[tuple[str, str], ...]], float] = {}
    told = []
    for at in moments:
        now: set[str] = set()
        for place, rule in enumerate(ALL):
            found = evaluate(rule["expr"], series, at)
            if "record" in rule:
                for labels, value in found:
                    series.add(rule["record"], labels, at, value)
                continue
            keys = {(place, tuple(sorted(bare(labels).items()))) for labels, _ in found}
            for key in [key for key in since if key[0] == place and key not in keys]:
                del since[key]
            for key in keys:
                if at - since.setdefault(key, at) >= seconds(rule["for"]):
                    now.add(rule["alert"])
        told.append(now)
    return told


def series_of(listed: list[dict[str, str]], interval: float) -> Series:
    """The samples that promtool's notation stands for: `1x3`, `0+10x5`, `7-1x5`, one after the other."""
    made = Series()
    for each in listed:
        selector: Any = promql.parse(each["series"])
        labels = {matcher.name: matcher.value for matcher in selector.matchers.matchers}
        at = 0.0
        for piece in each["values"].split():
            first, step, count = re.fullmatch(r"([\d.]+)([+-][\d.]+)?x(\d+)", piece).groups()
            for number in range(int(count) + 1):
                made.add(selector.name, labels, at, float(first) + number * float(step or 0))
                at += interval
    return made
