"""A real API server accepts what the chart renders, strictly, and refuses what the chart must never render."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import yaml
from chart import COMBINATIONS, ROOT, pods, rendered
from control_plane import ControlPlane, control_plane, definitions

pytestmark = [
    pytest.mark.skipif(not (shutil.which("go") and shutil.which("etcd")), reason="needs Go, and etcd of Debian's etcd-server"),
    pytest.mark.timeout(3_600),
]
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "latest"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An API server with the definitions of all custom kinds, and a namespace that enforces Pod Security's `restricted`."""
    with control_plane(tmp_path_factory.mktemp("cluster")) as plane:
        for path in definitions():
            plane.must("create", "-f", str(path))
        names = [line.split()[0] for line in plane.must("get", "crds", "--no-headers").splitlines()]
        plane.must("wait", "--for", "condition=established", "--timeout", "60s", *(f"crd/{name}" for name in names))
        for name in ("shop", "learning"):
            space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}}
            plane.must("create", "-f", "-", text=json.dumps(space))
            plane.ask("create", "serviceaccount", "default", "-n", name)
        plane.must("create", "priorityclass", "high", "--value", "1")
        yield plane


def dry(plane: ControlPlane, objects: list[dict[str, Any]]) -> str:
    """Apply without storing, with unknown and repeated fields as errors; returns warnings."""
    text = yaml.safe_dump_all(objects)
    ran = plane.ask("apply", "-n", "shop", "--dry-run=server", "--validate=strict", "-f", "-", text=text)
    assert ran.returncode == 0, ran.stderr
    return ran.stderr


@pytest.mark.parametrize("name", COMBINATIONS)
def test_the_api_server_accepts_every_combination_and_warns_of_nothing(cluster: ControlPlane, name: str) -> None:
    assert dry(cluster, rendered(COMBINATIONS[name])) == ""


@pytest.mark.parametrize("name", COMBINATIONS)
def test_pods_pass_the_restricted_profile(cluster: ControlPlane, name: str) -> None:
    """A namespace enforces it on pods only, so each template is sent as a pod."""
    for one in rendered(COMBINATIONS[name]):
        if one["kind"] == "ServiceAccount":
            cluster.must("apply", "-n", "shop", "-f", "-", text=json.dumps(one))
    for owner, template in pods(rendered(COMBINATIONS[name])).items():
        pod = {"apiVersion": "v1", "kind": "Pod", **deepcopy(template)}
        pod["metadata"]["name"] = owner.split("/")[1]
        if owner.startswith("StatefulSet/"):
            pod["spec"]["volumes"].append({"name": "state", "emptyDir": {}})
        dry(cluster, [pod])


@pytest.mark.parametrize("missing", ["seccompProfile", "runAsNonRoot"])
def test_a_pod_without_a_part_of_the_profile_is_refused(cluster: ControlPlane, missing: str) -> None:
    template = pods(rendered({"serviceAccounts": {"create": False}, "encoder": {"enabled": True}}))["Deployment/riffle-encoder"]
    pod = {"apiVersion": "v1", "kind": "Pod", **deepcopy(template)}
    pod["metadata"]["name"] = "open"
    del pod["spec"]["securityContext"][missing]
    ran = cluster.ask("apply", "-n", "shop", "--dry-run=server", "-f", "-", text=json.dumps(pod))
    assert (ran.returncode != 0, 'violates PodSecurity "restricted:latest"' in ran.stderr) == (True, True), ran.stderr


def test_a_misspelt_field_is_refused(cluster: ControlPlane) -> None:
    (worker,) = [one for one in rendered({}) if one["kind"] == "StatefulSet"]
    worker["spec"]["replica"] = 3
    ran = cluster.ask("apply", "-n", "shop", "--dry-run=server", "--validate=strict", "-f", "-", text=json.dumps(worker))
    assert (ran.returncode != 0, 'unknown field "spec.replica"' in ran.stderr) == (True, True), ran.stderr


@pytest.mark.parametrize("name", ["train-job.yaml", "train-trainjob.yaml"])
def test_what_riffle_launch_submits_is_accepted(cluster: ControlPlane, name: str) -> None:
    path = str(ROOT / "deploy" / "kubernetes" / name)
    cluster.must("apply", "--dry-run=server", "--validate=strict", "-f", path)
