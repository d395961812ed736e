"""Dashboards, alerts, runbooks and the page of metrics agree with the metrics that the code exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import ROOT, rendered
from prometheus_client import ProcessCollector
from promql import uses_of

from agents.cli import COMMANDS
from agents.metrics import Metrics
from agents.metrics_page import LABELS, page
from schemas.settings import Settings
from streams.kafka.topics import TOPICS

RULES = ROOT / "deploy" / "prometheus" / "riffle.rules.yaml"
CASES = sorted(RULES.parent.glob("*.test.yaml"))
BOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
RUNBOOKS = ROOT / "docs" / "runbooks"
DEFINED = {metric.name: metric for metric in Metrics().defined}
PROCESS = {family.name + ("_total" if family.type == "counter" else "") for family in ProcessCollector(registry=None).collect()}
PROMETHEUS = {"up"}
"Series that Prometheus itself writes."
NOT_DRAWN = {"riffle_release_trained_until_ms"}
"Kept beside another metric for old dashboards."


def boards() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in BOARDS]


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions() -> list[tuple[str, str]]:
    """Where each expression is, and the expression."""
    found = [(rule["alert"], rule["expr"]) for rule in alerts()]
    for board in boards():
        found += [(panel["title"], target["expr"]) for panel in panels(board) for target in panel["targets"]]
        found += [(board["title"], annotation["expr"]) for annotation in board["annotations"]["list"]]
    return found


def base(name: str) -> str:
    """The name of the metric that a series belongs to."""
    short = re.sub(r"_(bucket|sum|count)$", "", name)
    return short if DEFINED.get(short) is not None and DEFINED[short].kind == "histogram" else name


def test_the_page_of_metrics_is_current() -> None:
    written = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert written == page(), "python -m agents.metrics_page > docs/metrics.md"


def test_every_metric_has_a_section_and_labels_that_are_described_and_name_no_entity() -> None:
    for metric in DEFINED.values():
        assert metric.section
        assert set(metric.labels) <= set(LABELS), metric.name
        assert not set(metric.labels) & {"user", "user_id", "item", "item_id", "request_id", "session_id", "query", "path"}
    assert {label for metric in DEFINED.values() for label in metric.labels} == set(LABELS), "a label that no metric has"


def test_times_and_sizes_are_in_base_units() -> None:
    for name in set(DEFINED) - NOT_DRAWN:
        assert not re.search(r"_(ms|us|ns|milliseconds|minutes|hours|kb|mb|kilobytes|megabytes|percent)(_total)?$", name), name


def test_histograms_ascend_and_their_buckets_fit_what_they_measure() -> None:
    for metric in DEFINED.values():
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert bool(metric.buckets) == (metric.kind == "histogram")
    assert DEFINED["riffle_stage_seconds"].buckets[0] <= 0.0001
    # a backlog makes freshness minutes
    assert DEFINED["riffle_event_visible_seconds"].buckets[-1] >= 600
    assert DEFINED["riffle_answer_seconds"].buckets[-1] >= 10


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_every_name_in_an_expression_is_exported_with_the_labels_used(where: str, expression: str) -> None:
    uses = uses_of(expression)
    assert uses
    for use in uses:
        name = base(use.name)
        assert name in DEFINED or name in PROCESS | PROMETHEUS, f"{where}: {use.name}"
        known = set(DEFINED[name].labels) if name in DEFINED else set()
        assert use.labels <= known, f"{where}: {use.name} has no {set(use.labels) - known}"
        assert ("_bucket" in use.name) <= (name in DEFINED and DEFINED[name].kind == "histogram")


def test_every_metric_is_drawn() -> None:
    drawn = {base(use.name) for board in boards() for p in panels(board) for t in p["targets"] for use in uses_of(t["expr"])}
    assert set(DEFINED) - drawn - NOT_DRAWN == set()


def test_panels_lie_side_by_side_and_have_numbers_of_their_own() -> None:
    assert len({board["uid"] for board in boards()}) == len(BOARDS) == 2
    for board in boards():
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids)
        taken: set[tuple[int, int]] = set()
        for at in (panel["gridPos"] for panel in board["panels"]):
            cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
            assert at["x"] + at["w"] <= 24
            assert not cells & taken
            taken |= cells
        for panel in panels(board):
            assert all(target.get("legendFormat", "x") for target in panel["targets"])


def test_legends_and_texts_name_labels_that_the_expression_keeps() -> None:
    named = [(t["expr"], t.get("legendFormat", "")) for board in boards() for p in panels(board) for t in p["targets"]]
    named += [(rule["expr"], rule["annotations"]["summary"].replace("$labels.", "")) for rule in alerts()]
    for expression, text in named:
        labels = set(re.findall(r"{{ ?([a-z_]+) ?}}", text)) - {"le"}
        if by := re.search(r"\bby \(([^)]*)\)", expression):
            assert labels <= {label.strip() for label in by[1].split(",")}, (expression, text)
        else:
            assert labels <= {"instance"} | set().union(
                *(DEFINED[base(u.name)].labels for u in uses_of(expression) if u.name != "up" and base(u.name) in DEFINED)
            ), expression


def test_each_alert_has_its_page_and_each_page_its_alert() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names)
    assert {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"} == set(names)
    overview = (RUNBOOKS / "README.md").read_text()
    for rule in alerts():
        at = ROOT / rule["annotations"]["runbook"]
        text = at.read_text(encoding="utf-8")
        assert at.stem == rule["alert"]
        assert text.startswith(f"# {rule['alert']}\n\n**What it means.** ")
        assert re.search(r"\n## What to look at\n\n1\. .+\n(.*\n)*\n## What to do\n\n- ", text)
        assert f"| [{rule['alert']}]({rule['alert']}.md) | {rule['labels']['severity']} |" in overview
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            assert (RUNBOOKS / link).exists(), f"{at.name}: {link}"
        titles = {panel["title"] for board in boards() for panel in panels(board)} | {board["title"] for board in boards()}
        assert set(re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", text)) <= titles | {"Health"}, at.name


def test_runbooks_name_commands_settings_and_topics_that_exist() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in RUNBOOKS.glob("*.md"))
    assert set(re.findall(r"`riffle ([a-z]+)", text)) <= set(COMMANDS)
    assert set(re.findall(r"RIFFLE_[A-Z_]+", text)) <= {f"RIFFLE_{field.name.upper()}" for field in fields(Settings)}
    assert set(re.findall(r"`riffle\.([a-z-]+)`", text)) <= set(TOPICS)


def test_each_alert_is_seen_to_fire() -> None:
    text = "".join(path.read_text() for path in CASES)
    assert {rule["alert"] for rule in alerts() if f'{{alertname="{rule["alert"]}"' not in text} == set()


def promtool(*arguments: str) -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool here: Debian's prometheus brings it")
    ran = subprocess.run([found, *arguments], capture_output=True, text=True, check=False, cwd=RULES.parent)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_prometheus_accepts_the_rules_and_its_configuration() -> None:
    assert f"{len(alerts())} rules found" in promtool("check", "rules", RULES.name)
    promtool("check", "config", "prometheus.yaml")


def test_each_alert_fires_on_its_case_and_not_before() -> None:
    assert "SUCCESS" in promtool("test", "rules", *(path.name for path in CASES))


def test_the_chart_ships_the_same_alerts_and_dashboards() -> None:
    on = {"monitoring": {"rules": {"enabled": True, "labels": {"a": "b"}}, "dashboards": {"enabled": True}}}
    made = rendered(on)
    (rule,) = (one for one in made if one["kind"] == "PrometheusRule")
    assert rule["spec"] == yaml.safe_load(RULES.read_text())
    assert rule["metadata"]["labels"]["a"] == "b"
    maps = [one for one in made if one["metadata"]["labels"].get("grafana_dashboard") == "1"]
    shipped = {name: json.loads(text) for one in maps for name, text in one["data"].items()}
    assert shipped == {path.name: json.loads(path.read_text()) for path in BOARDS}
    assert not [one for one in rendered({}) if one["kind"] == "PrometheusRule" or "dashboard" in one["metadata"]["name"]]
    assert all(
        (Path(path) / "riffle.rules.yaml").exists() for path in (RULES.parent, ROOT / "deploy/helm/riffle/files/prometheus")
    )
