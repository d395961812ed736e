"""The Helm chart rendered with values: combinations that together turn each option on, and helm itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "deploy" / "helm" / "riffle"
PEER = [{"namespaceSelector": {"matchLabels": {"team": "shop"}}}]
PLACED = {
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "team", "operator": "Exists"}]}]
            }
        }
    },
    "podAnnotations": {"example.com/owner": "shop"},
    "priorityClassName": "high",
}
S3 = {"RIFFLE_ARCHIVE": "s3://riffle/archive"}
PLAIN: Mapping[str, Any] = {"settings": {"RIFFLE_REDIS_URL": "redis://redis:6379/0"}}
"The least that must be given."
COMBINATIONS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "open": {
        "networkPolicy": {"enabled": False},
        "settings": {"RIFFLE_HTTP_WITHOUT_TOKENS": "yes"},
        "serviceAccounts": {"create": False},
        "service": {"type": "LoadBalancer", "annotations": {"service.beta.kubernetes.io/aws-load-balancer-scheme": "internal"}},
    },
    "placed": {
        "worker": {**PLACED, "zoneSpread": "DoNotSchedule", "maxUnavailable": "50%", "persistence": {"storageClass": "gp3"}},
        "image": {"registry": "example.com/shop", "tag": "1.2.3", "pullPolicy": "Always", "pullSecrets": ["pull"]},
        "serviceAccounts": {"annotations": {"worker": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/riffle"}}},
    },
    "secrets": {
        "secrets": {"environment": "riffle", "files": "riffle-files"},
        "settings": {
            "RIFFLE_REDIS_URL": None,
            "RIFFLE_KAFKA_SECURITY": "SSL",
            "RIFFLE_KAFKA_CA_FILE": "/etc/riffle/secrets/ca.pem",
        },
        "externalSecrets": {"enabled": True, "files": {"ca.pem": "riffle/ca"}, "store": {"kind": "ClusterSecretStore"}},
    },
    "ranking": {"ranking": {"enabled": True, **PLACED}, "autoscaling": {"ranking": {"kind": "hpa"}, "worker": {"kind": "hpa"}}},
    "gpu": {
        "ranking": {"enabled": True, "gpu": {"enabled": True, "provider": "tensorrt", "nodeSelector": {"gpu": "h200"}}},
        "autoscaling": {
            "worker": {"kind": "keda"},
            "ranking": {"kind": "keda"},
            "keda": {"trigger": "apache-kafka", "metadata": {"sasl": "aws_msk_iam", "tls": "enable"}, "authentication": "msk"},
        },
    },
    "encoder": {"encoder": {"enabled": True, **PLACED}, "networkPolicy": {"clients": PEER, "monitoring": PEER}},
    "train": {
        "settings": S3,
        "train": {"enabled": True, "upload": "s3://riffle/releases", "persistence": {"storageClass": "gp3"}},
    },
    "full only": {
        "settings": S3,
        "train": {
            **PLACED,
            "enabled": True,
            "upload": "s3://riffle/releases",
            "incremental": {"enabled": False},
            "full": {"arguments": ["--positive", "action == 'like'"]},
        },
    },
    "tokens": {
        "secrets": {"environment": "riffle", "files": "riffle-files"},
        "http": {
            "tokens": "tokens",
            "token": "token",
            "certificate": "tls.crt",
            "key": "tls.key",
            "authorities": "ca.crt",
            "serverName": "workers.riffle",
        },
        "networkPolicy": {"enabled": False},
        "ranking": {"enabled": True},
        "monitoring": {"podMonitor": {"enabled": True, "token": "metrics-token"}},
    },
    "seen": {
        "ranking": {"enabled": True},
        "monitoring": {
            "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "rules": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboards": {"enabled": True},
        },
        "networkPolicy": {"clients": PEER, "monitoring": PEER, "https": [], "podIdentity": False},
        "httpRoute": {
            "enabled": True,
            "parentRefs": [{"name": "shared", "namespace": "gateway"}],
            "hostnames": ["r.example.com"],
        },
    },
}
"Values beside `PLAIN`, by what they show."


def tool(name: str) -> str:
    """Path of helm or kubectl: this environment's (`requirements/tools`), or the system's. Skips the test without one."""
    own = Path(sys.executable).parent / name
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here: requirements/tools .venv installs it")
    return found


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested values; later ones win, and None removes a value."""
    whole: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if value is None:
                whole.pop(key, None)
                continue
            both = isinstance(value, Mapping) and isinstance(whole.get(key), Mapping)
            whole[key] = merged(whole[key], value) if both else value
    return whole


def template(values: Mapping[str, Any], release: str = "riffle") -> subprocess.CompletedProcess[str]:
    """Run `helm template` with these values."""
    command = [tool("helm"), "template", release, str(CHART), "--namespace", "shop", "--values", "-"]
    return subprocess.run(command, input=yaml.safe_dump(dict(values)), capture_output=True, text=True, check=False)


def rendered(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The objects of the chart with these values beside `PLAIN`."""
    made = template(merged(PLAIN, values))
    assert made.returncode == 0, made.stderr
    return [document for document in yaml.safe_load_all(made.stdout) if document]


def pods(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Pod templates by `Kind/name` of their owner."""
    found = {}
    for one in objects:
        spec = one.get("spec", {})
        template_of = spec.get("jobTemplate", {}).get("spec", spec).get("template") if isinstance(spec, dict) else None
        if template_of:
            found[f"{one['kind']}/{one['metadata']['name']}"] = template_of
    return found
