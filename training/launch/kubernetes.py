"""A training as a Kubernetes Job: an indexed pod per node, found by name through a headless service."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from schemas.errors import ConfigError, TransientError
from training.launch.job import MASTER_PORT, STATE, TrainingJob

__all__ = ["STANDARD", "KubernetesSettings", "apply", "container", "kubernetes_job", "pod_volumes", "to_yaml"]

LABEL = "app.kubernetes.io/name"
TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class KubernetesSettings:
    """Cluster settings of a job."""

    namespace: str = "default"
    claim: str = ""
    "Volume claim for releases and checkpoints, mounted at STATE. With several nodes it must be writable by all."
    secret: str = ""
    "Secret in the cluster whose entries become environment variables."
    service_account: str = ""
    "Service account whose role may read the archive."


STANDARD = KubernetesSettings()


def resources(job: TrainingJob) -> dict[str, Any]:
    """Resource requests and limits of a node."""
    gpus = {"nvidia.com/gpu": str(job.gpus)} if job.gpus else {}
    return {"requests": {"cpu": job.cpus, "memory": job.memory, **gpus}, "limits": {"memory": job.memory, **gpus}}


def variables(job: TrainingJob) -> list[dict[str, Any]]:
    """Environment variables of the job, by name."""
    return [{"name": name, "value": value} for name, value in sorted(job.environment.items())]


def pod_volumes(settings: KubernetesSettings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes and their mounts: shared memory for communication between processes, and the claim."""
    volumes: list[dict[str, Any]] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}]  # noqa: S108 - a mount point
    if settings.claim:
        volumes.append({"name": "state", "persistentVolumeClaim": {"claimName": settings.claim}})
        mounts.append({"name": "state", "mountPath": STATE})
    return volumes, mounts


def container(job: TrainingJob, settings: KubernetesSettings) -> dict[str, Any]:
    """Container of a node."""
    torchrun = {
        "PET_NNODES": str(job.nodes),
        "PET_NPROC_PER_NODE": str(job.processes),
        "PET_MASTER_ADDR": f"{job.name}-0.{job.name}" if job.nodes > 1 else "127.0.0.1",
        "PET_MASTER_PORT": str(MASTER_PORT),
        "PET_MAX_RESTARTS": str(job.restarts),
    }
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    made: dict[str, Any] = {
        "name": "train",
        "image": job.image,
        "command": job.command,
        "env": [
            *({"name": name, "value": value} for name, value in torchrun.items()),
            {"name": "PET_NODE_RANK", "valueFrom": index},
            *variables(job),
        ],
        "resources": resources(job),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": pod_volumes(settings)[1],
    }
    if settings.secret:
        made["envFrom"] = [{"secretRef": {"name": settings.secret}}]
    return made


def kubernetes_job(job: TrainingJob, settings: KubernetesSettings = STANDARD) -> list[dict[str, Any]]:
    """Make the objects to create: a Job and, with several nodes, the service through which they find the first."""
    labels = {LABEL: "riffle-train", "riffle/job": job.name}
    metadata = {"name": job.name, "namespace": settings.namespace, "labels": labels}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "subdomain": job.name,
        "automountServiceAccountToken": bool(settings.service_account),
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "fsGroup": 10001},
        "containers": [container(job, settings)],
        "volumes": pod_volumes(settings)[0],
    }
    if settings.service_account:
        pod["serviceAccountName"] = settings.service_account
    spec = {
        "completionMode": "Indexed",
        "completions": job.nodes,
        "parallelism": job.nodes,
        # a lost node also ends the others: all restart and continue from the newest checkpoint
        "backoffLimit": job.restarts * job.nodes,
        "activeDeadlineSeconds": job.max_seconds,
        "ttlSecondsAfterFinished": 7 * 86_400,
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    made: list[dict[str, Any]] = [{"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}]
    if job.nodes > 1:
        service = {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"riffle/job": job.name},
            "ports": [{"name": "torchrun", "port": MASTER_PORT}],
        }
        made.insert(0, {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service})
    return made


def to_yaml(objects: Sequence[Mapping[str, Any]]) -> str:
    """Format as documents for `kubectl apply -f -`."""
    return "---\n".join(yaml.safe_dump(dict(each), sort_keys=False) for each in objects)


def apply(objects: Sequence[Mapping[str, Any]], kubectl: str = "kubectl") -> str:
    """Create the objects in kubectl's current cluster; returns kubectl's output.

    Raises:
        ConfigError: there is no kubectl.
        TransientError: the cluster rejects them.
    """
    try:
        ran = subprocess.run(
            [kubectl, "apply", "-f", "-"],
            input=to_yaml(objects),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as exc:
        raise ConfigError("no_kubectl", "kubectl is not installed; --dry-run prints what it would be given") from exc
    except subprocess.TimeoutExpired as exc:
        raise TransientError("cluster", f"the cluster did not answer within {TIMEOUT_S} s") from exc
    if ran.returncode:
        raise TransientError("cluster", f"kubectl apply failed: {ran.stderr.strip()[:500]}")
    return ran.stdout.strip()
