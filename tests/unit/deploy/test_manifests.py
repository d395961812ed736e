"""The Kubernetes manifests are valid, and name commands and settings that exist."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import agents.worker
from agents.cli import COMMANDS
from agents.ranker.app import group_of
from agents.worker import RANKING, ROLES
from schemas.settings import Settings

FOLDER = Path(__file__).parents[3] / "deploy" / "kubernetes"
OWN = {"retrain.yaml", "ranking.yaml"}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


@pytest.mark.parametrize("name", sorted(OWN))
def test_every_document_is_valid(name: str) -> None:
    found = documents(FOLDER / name)
    assert found
    for document in found:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_retraining_is_weekly_in_full_hourly_from_the_champion_and_never_twice_at_once() -> None:
    jobs = {d["metadata"]["name"]: d["spec"] for d in documents(FOLDER / "retrain.yaml") if d["kind"] == "CronJob"}
    args = {}
    for name, spec in jobs.items():
        assert spec["concurrencyPolicy"] == "Forbid"
        (container,) = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        args[name] = container["args"]
        known = {f"RIFFLE_{field.name.upper()}" for field in fields(Settings)}
        assert {variable["name"] for variable in container["env"]} <= known
        assert container["args"][0] == "riffle"
        assert container["args"][1] in COMMANDS
    assert "--incremental" in args["riffle-train-incremental"]
    assert "--incremental" not in args["riffle-train"]
    # never on the same day, because an update that is promoted meanwhile causes the full training to be refused
    assert jobs["riffle-train-incremental"]["schedule"].split()[1:] == ["*", "*", "*", "1-6"]
    assert jobs["riffle-train"]["schedule"].split()[2:] == ["*", "*", "0"]


def test_a_laptops_crontab_is_the_clusters_schedule() -> None:
    readme = (FOLDER.parents[1] / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^((?:\S+ +){5})cd .* \.venv/bin/(riffle train .*) >> ", readme, re.MULTILINE)
    at_home = {" ".join(schedule.split()): command.split() for schedule, command in lines}
    jobs = [d["spec"] for d in documents(FOLDER / "retrain.yaml") if d["kind"] == "CronJob"]
    in_a_cluster = {}
    for spec in jobs:
        (container,) = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        in_a_cluster[spec["schedule"]] = container["args"][: container["args"].index("--upload")]
    assert at_home == in_a_cluster


def test_ranking_pods_are_scaled_by_the_lag_of_their_group_alone_and_keep_nothing() -> None:
    (deployment,) = documents(FOLDER / "ranking.yaml")
    (scaled,) = documents(FOLDER / "scale-ranking.yaml")
    settings = Settings()
    assert deployment["kind"] == scaled["spec"]["scaleTargetRef"]["kind"] == "Deployment"
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["metadata"]["consumerGroup"] == group_of(settings)
    assert trigger["metadata"]["topic"] == settings.topic("rank")
    assert scaled["spec"]["maxReplicaCount"] == settings.partitions
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["command"] == ["python", "-m", agents.worker.__name__, "--role", RANKING]
    assert RANKING in ROLES
    assert container["ports"] == [{"name": "status", "containerPort": settings.rank_port}]
    assert [list(volume) for volume in spec["volumes"]] == [["name", "emptyDir"]], "no volume outlives a pod"
