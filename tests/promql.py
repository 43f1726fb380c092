"""Enough of PromQL to try our alert rules: what promql_parser reads, evaluated over samples in memory.

An instant vector is a list of (labels, value); the metric's name is the label `__name__`. What Prometheus
extrapolates at the edges of a range is not: a rate is the increase between the samples that there are.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import promql_parser as promql

Labels = dict[str, str]
Vector = list[tuple[Labels, float]]
NAME = "__name__"
LOOKBACK_SECONDS = 300.0
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}
_SUMS: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else math.nan if not a else math.copysign(math.inf, a),
}
_AGGREGATES: dict[str, Callable[[list[float]], float]] = {
    "sum": sum,
    "max": max,
    "min": min,
    "count": len,
    "group": lambda _: 1.0,
}


class Series:
    """Samples by series: (time in s, value), in the order of time."""

    def __init__(self) -> None:
        self._of: dict[str, list[tuple[Labels, list[tuple[float, float]]]]] = defaultdict(list)

    def add(self, name: str, labels: Mapping[str, str], at: float, value: float) -> None:
        for known, samples in self._of[name]:
            if known == labels:
                samples.append((at, value))
                return
        self._of[name].append((dict(labels), [(at, value)]))

    def select(
        self, selector: Any, first: float, last: float
    ) -> Iterator[tuple[Labels, list[tuple[float, float]]]]:
        for labels, samples in self._of.get(selector.name, ()):
            if all(_matches(matcher, labels) for matcher in selector.matchers.matchers):
                found = [sample for sample in samples if first < sample[0] <= last]
                if found:
                    yield labels, found


def _matches(matcher: Any, labels: Labels) -> bool:
    value, wanted, op = labels.get(matcher.name, ""), matcher.value, str(matcher.op).rpartition(".")[2]
    if op in ("Equal", "NotEqual"):
        return (value == wanted) == (op == "Equal")
    return bool(re.fullmatch(wanted, value)) == (op == "Re")


def evaluate(text: str, series: Series, at: float) -> Vector:
    """The vector that an expression is at the moment `at`; a scalar has no labels."""
    found = _value(promql.parse(text), series, at)
    return [({}, found)] if isinstance(found, float) else found


def _value(node: Any, series: Series, at: float) -> Vector | float:
    match type(node).__name__:
        case "NumberLiteral":
            return float(node.val)
        case "ParenExpr":
            return _value(node.expr, series, at)
        case "VectorSelector":
            found = series.select(node, at - LOOKBACK_SECONDS, at)
            return [({**labels, NAME: node.name}, samples[-1][1]) for labels, samples in found]
        case "AggregateExpr":
            return _aggregated(node, series, at)
        case "Call":
            return _called(node, series, at)
        case "BinaryExpr":
            return _combined(node, _value(node.lhs, series, at), _value(node.rhs, series, at))
    raise NotImplementedError(type(node).__name__)


def bare(labels: Labels) -> Labels:
    return {name: value for name, value in labels.items() if name != NAME}


def _aggregated(node: Any, series: Series, at: float) -> Vector:
    kept = list(node.modifier.labels) if node.modifier else []
    groups: dict[tuple[tuple[str, str], ...], list[float]] = defaultdict(list)
    for labels, value in _value(node.expr, series, at):
        groups[tuple((name, labels[name]) for name in kept if name in labels)].append(value)
    aggregate = _AGGREGATES[str(node.op)]
    return [(dict(key), float(aggregate(values))) for key, values in groups.items()]


def _called(node: Any, series: Series, at: float) -> Vector:
    name, arguments = node.func.name, node.args
    if name in ("rate", "increase", "changes"):
        seconds = arguments[0].range.total_seconds()
        found = []
        for labels, samples in series.select(arguments[0].vector_selector, at - seconds, at):
            steps = [later - earlier for (_, earlier), (_, later) in pairwise(samples)]
            if steps:
                grown = sum(samples[place + 1][1] if step < 0 else step for place, step in enumerate(steps))
                over = samples[-1][0] - samples[0][0]
                changed = float(sum(step != 0 for step in steps))
                value = {"rate": grown / over, "increase": grown / over * seconds, "changes": changed}[name]
                found.append((labels, value))
        return found
    if name == "absent":
        return [] if _value(arguments[0], series, at) else [({}, 1.0)]
    if name == "histogram_quantile":
        return _quantiles(arguments[0].val, _value(arguments[1], series, at))
    raise NotImplementedError(name)


def _quantiles(share: float, vector: Vector) -> Vector:
    groups: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = defaultdict(list)
    for labels, value in vector:
        key = tuple(sorted((name, each) for name, each in labels.items() if name not in ("le", NAME)))
        groups[key].append((float(labels["le"]), value))
    return [(dict(key), _quantile(share, sorted(buckets))) for key, buckets in groups.items()]


def _quantile(share: float, buckets: list[tuple[float, float]]) -> float:
    total = buckets[-1][1]
    if not total:
        return math.nan
    lower, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= share * total:
            if bound == math.inf:
                return lower
            return lower + (bound - lower) * (share * total - below) / (count - below)
        lower, below = bound, count
    return lower


def _combined(node: Any, left: Vector | float, right: Vector | float) -> Vector | float:
    op = str(node.op)
    if op in ("and", "or", "unless"):
        return _set(node, op, left, right)
    if isinstance(left, float) and isinstance(right, float):
        return _SUMS[op](left, right)
    pairs = _paired(node, left, right)
    if op in _COMPARISONS:
        return [(labels, first) for labels, first, second in pairs if _COMPARISONS[op](first, second)]
    return [(bare(labels), _SUMS[op](first, second)) for labels, first, second in pairs]


def _paired(node: Any, left: Vector | float, right: Vector | float) -> list[tuple[Labels, float, float]]:
    if isinstance(right, float):
        return [(labels, value, right) for labels, value in left]
    if isinstance(left, float):
        return [(labels, left, value) for labels, value in right]
    others = {_key(node, labels): value for labels, value in right}
    return [
        (labels, value, others[_key(node, labels)]) for labels, value in left if _key(node, labels) in others
    ]


def _key(node: Any, labels: Labels) -> tuple[tuple[str, str], ...]:
    """By what two vectors are matched: the labels of `on (...)`, else all but the name."""
    matching = node.modifier.matching if node.modifier else None
    own = bare(labels)
    if matching is not None:
        assert str(matching.type).endswith("Include"), "ignoring (...) is not known here"
        own = {name: own[name] for name in matching.labels if name in own}
    return tuple(sorted(own.items()))


def _set(node: Any, op: str, left: Vector | float, right: Vector | float) -> Vector:
    assert not isinstance(left, float)
    assert not isinstance(right, float)
    if op == "or":
        there = {_key(node, labels) for labels, _ in left}
        return left + [each for each in right if _key(node, each[0]) not in there]
    there = {_key(node, labels) for labels, _ in right}
    return [each for each in left if (_key(node, each[0]) in there) == (op == "and")]
