"""The alert rules and the dashboard name what exists, and the alerts fire when they should."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import grpc
import promql_parser as promql
import pytest
import yaml

from service.app import create_app
from service.breaker import State
from service.config import Settings
from service.job_state import STATES, TERMINAL_STATES
from service.metrics.families import BY_NAME
from tests.alert_rules import ALERTS, ALL, FOLDER, firing, seconds, series_of
from tests.readme_tables import README, problem_types
from transforms.signin_event import REASONS

DASHBOARD = json.loads((FOLDER / "signin-dashboard.json").read_text())
CASES = yaml.safe_load((FOLDER / "signin-alerts-test.yaml").read_text())["tests"]
RECORDED = {rule["record"]: rule for rule in ALL if "record" in rule}
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OF_PROMETHEUS = {"instance", "job", "__name__"}
SUFFIXES = ("_bucket", "_count", "_sum")


def anchors() -> set[str]:
    """What GitHub makes of the README's headings."""
    heads = re.findall(r"^#+ (.+)$", README.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def expressions() -> dict[str, str]:
    """Every expression of the rules and of the dashboard, by where it stands."""
    found = {f"rule {rule.get('alert') or rule['record']}": rule["expr"] for rule in ALL}
    for panel in PANELS:
        for target in panel["targets"]:
            expr = target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")
            found[f"panel {panel['title']} {target['refId']}"] = expr
    return found


def nodes(node: Any, parent: Any = None):
    """Every node of an expression with the function that it is an argument of, or None."""
    yield node, parent
    kind = type(node).__name__
    if kind == "Call":
        for argument in node.args:
            yield from nodes(argument, node.func.name)
    elif kind == "BinaryExpr":
        yield from nodes(node.lhs)
        yield from nodes(node.rhs)
    elif kind in ("AggregateExpr", "ParenExpr", "UnaryExpr", "SubqueryExpr"):
        yield from nodes(node.expr, "histogram_quantile" if parent == "histogram_quantile" else None)
    elif kind == "MatrixSelector":
        yield from nodes(node.vector_selector, parent)


def family_of(name: str):
    """The family of a sample's name, and the suffix of a histogram's."""
    if name in BY_NAME:
        assert BY_NAME[name].kind != "histogram", f"{name} is a histogram: name its _bucket, _count or _sum"
        return BY_NAME[name], ""
    for suffix in SUFFIXES:
        if name.endswith(suffix) and BY_NAME.get(name.removesuffix(suffix)):
            family = BY_NAME[name.removesuffix(suffix)]
            assert family.kind == "histogram", f"{family.name} has no {suffix}"
            return family, suffix
    raise AssertionError(f"there is no metric {name}")


def routes() -> set[str]:
    return {"", *create_app(Settings(_env_file=None)).openapi()["paths"]}


CODES = {cls.code for cls in problem_types()} | set(REASONS)
VALUES: dict[tuple[str, str], set[str]] = {
    ("signin_jobs", "state"): set(STATES - TERMINAL_STATES),
    ("signin_jobs_ended_total", "state"): set(TERMINAL_STATES),
    ("signin_breaker_processes", "state"): set(get_args(State)),
    ("signin_events_total", "outcome"): {"published", "spooled", "refused"},
    ("signin_events_total", "code"): CODES | {""},
    ("signin_problems_total", "code"): CODES,
    ("signin_connections_refused_total", "code"): CODES,
    ("signin_requests_total", "route"): routes(),
    ("signin_request_seconds", "route"): routes(),
    ("signin_requests_total", "method"): {"GET", "POST", "PATCH", "HEAD", "other"},
    ("signin_request_seconds", "method"): {"GET", "POST", "PATCH", "HEAD", "other"},
    ("signin_requests_total", "status"): {str(status) for status in range(100, 600)},
    ("signin_publish_seconds", "status"): {status.name for status in grpc.StatusCode},
    ("signin_dataflow_call_seconds", "code"): {"OK", "UNAVAILABLE", "UNKNOWN"},
    ("signin_reconcile_tick_seconds", "outcome"): {"complete", "incomplete", "failed"},
    ("signin_job_messages_total", "outcome"): {"signin", "dead_letter"},
    ("signin_replay_letters_total", "outcome"): {"replayed", "repeated", "unreplayable"},
    ("signin_relay_events_total", "outcome"): {"published", "parked"},
    ("signin_outbox_commit_seconds", "outcome"): {"committed", "failed"},
}


def require_value(family: Any, matcher: Any) -> None:
    """Fails where a matcher names a value that its label never has."""
    if matcher.name == "le":
        assert matcher.value in {*map(str, family.bounds), "+Inf"}, matcher.value
        return
    known = VALUES[family.name, matcher.name]
    if str(matcher.op).rpartition(".")[2] in ("Equal", "NotEqual"):
        assert matcher.value in known, f"{family.name}: {matcher.name}={matcher.value!r}"
        return
    for alternative in matcher.value.split("|"):
        assert any(re.fullmatch(alternative, each) for each in known), f"{matcher.name}=~{alternative!r}"


@pytest.mark.parametrize(("place", "text"), expressions().items(), ids=list(expressions()))
def test_an_expression_names_metrics_labels_and_values_that_exist(place, text):
    labels = {"le"} if "_bucket" in text else set()
    for node, caller in nodes(promql.parse(text)):
        if type(node).__name__ != "VectorSelector":
            continue
        if node.name in RECORDED:
            continue
        family, suffix = family_of(node.name)
        labels |= set(family.labels)
        is_counter = family.kind == "counter" or bool(suffix)
        if caller in ("rate", "increase"):
            assert is_counter, f"{caller} of {node.name}, which is a gauge"
        elif is_counter and caller is None:
            raise AssertionError(f"{node.name} only grows: it says something as a rate")
        for matcher in node.matchers.matchers:
            if matcher.name not in OF_PROMETHEUS:
                assert matcher.name in (*family.labels, *(["le"] if suffix == "_bucket" else []))
                require_value(family, matcher)
    for node, _ in nodes(promql.parse(text)):
        if type(node).__name__ == "AggregateExpr" and node.modifier:
            assert set(node.modifier.labels) <= labels | OF_PROMETHEUS


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_bad_it_is_for_how_long_and_where_to_read_on(name):
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["for"] == "0m" or seconds(rule["for"]) >= 60
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    document, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert (document, anchor in anchors()) == ("README.md", True)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_alerts_fire_over_made_up_series(case):
    last = max(seconds(each["eval_time"]) for each in case["promql_expr_test"])
    moments = [60.0 * minute for minute in range(int(last) // 60 + 1)]
    told = firing(series_of(case["input_series"], seconds(case["interval"])), moments)
    for each in case["promql_expr_test"]:
        expected = {re.search(r'alertname="(\w+)"', sample["labels"])[1] for sample in each["exp_samples"]}
        assert told[int(seconds(each["eval_time"])) // 60] == expected, each["eval_time"]


def test_every_alert_is_seen_to_fire():
    fired = {
        re.search(r'alertname="(\w+)"', sample["labels"])[1]
        for case in CASES
        for each in case["promql_expr_test"]
        for sample in each["exp_samples"]
    }
    assert fired == set(ALERTS)


def test_every_metric_is_on_the_dashboard():
    shown = set()
    for text in expressions().values():
        for node, _ in nodes(promql.parse(text)):
            if type(node).__name__ == "VectorSelector" and node.name not in RECORDED:
                shown.add(family_of(node.name)[0].name)
    assert set(BY_NAME) - shown == set()


def test_every_panel_has_a_description_a_unit_and_a_place_of_its_own():
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in PANELS:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_a_panel_shows_seconds_as_seconds_and_bytes_as_bytes(panel):
    unit = panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        expr = target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")
        tree = promql.parse(expr)
        names = {node.name for node, _ in nodes(tree) if type(node).__name__ == "VectorSelector"}
        is_time = any(re.search(r"_seconds(_bucket)?$", name) for name in names) and unit != "percentunit"
        assert (unit == "s") == is_time, target["expr"]
        assert (unit == "bytes") == any("bytes" in name for name in names)


def test_the_instances_of_the_dashboard_come_from_a_metric_that_is_always_there():
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables.keys() == {"datasource", "instance"}
    assert variables["instance"]["definition"] == "label_values(signin_info, instance)"
    for panel in PANELS:
        for target in panel["targets"]:
            assert "$instance" in target["expr"] or "signin:" in target["expr"], panel["title"]


def test_the_readme_shows_a_configuration_that_finds_the_rules_and_the_metrics():
    block = re.search(r"<!-- prometheus -->\n```yaml\n(.*?)```", README.read_text(), re.DOTALL)[1]
    shown = yaml.safe_load(block)
    assert [(FOLDER / name).exists() for name in shown["rule_files"]] == [True]
    (scraped_job,) = shown["scrape_configs"]
    # The rules tell our processes from others by these labels, and Prometheus scrapes /metrics by itself.
    assert scraped_job["job_name"] == "signin"
    assert "metrics_path" not in scraped_job
